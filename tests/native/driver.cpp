// Runs what record.py recorded, without Python and torch, so that sanitizers can watch. `make sanitize` builds it three ways.
//   driver replay FILES           every program, structure, instruction set, type and number of threads
//   driver malformed N FILES      codes and structures that are wrong, N of them at random
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "malformed.h"
#include "replay.h"

#if defined(__SANITIZE_ADDRESS__)
#define RIT_WATCHED ADDRESS
extern "C" const char* __asan_default_options() { return "detect_stack_use_after_return=1:allocator_may_return_null=1:handle_abort=1"; }
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }
#elif defined(__SANITIZE_THREAD__)
#define RIT_WATCHED THREADS
extern "C" const char* __tsan_default_options() { return "halt_on_error=1:exitcode=66"; }
#else
#define RIT_WATCHED PAGES
#endif

namespace {

enum Watched { ADDRESS, THREADS, PAGES };
constexpr bool threads_watched = RIT_WATCHED == THREADS;
int failures = 0;

std::string title(const Recorded& recorded, const Case& each, const Way& way) {
  const char* const types[rit::TYPES] = {" float32, ", " float64, ", " bfloat16, "};
  return recorded.name + " " + each.name + ", " + way.backend->name + types[way.type] + std::to_string(way.threads) + " threads" +
         (way.checkpointed ? ", checkpointed" : "");
}

void fail(const std::string& where, const std::string& what) {
  if (what.empty()) return;
  if (++failures <= 20) std::printf("  %s%s\n", where.c_str(), what.c_str());
}

bool dense_chain(const LevelInts& levels) {
  for (size_t level = 1; level < levels.starts.size(); ++level)
    if (levels.starts[level] - levels.starts[level - 1] != levels.entries) return false;
  return levels.last.empty() && levels.entries > 0;
}

// With one thread and with two or four, in other layouts of memory, the bits must be the same, and right. `turn` says with how
// many threads, and whether in segments too.
int64_t replay_case(const Recorded& recorded, const Case& each, const std::vector<rit::Code>& codes, const rit::Backend* backend, rit::Type type,
                    uint64_t turn) {
  const Way one{backend, type, 1, ROWS}, two{backend, type, 2, COLUMNS, FIRST}, four{backend, type, 4, GAPS, NONE, false};
  Way other = turn % 2 ? four : two;
  int64_t runs = 1;
  Results first;
  if (!threads_watched) {
    first = replay(recorded, each, codes, one);
    fail(title(recorded, each, one), difference(first, each, type));
    ++runs;
  }
  const Results results = replay(recorded, each, codes, other);
  if (threads_watched) fail(title(recorded, each, other), difference(results, each, type));
  const std::string changed = other_bits(first, results);
  fail(title(recorded, each, other), changed.empty() ? "" : ": other bits" + changed);
  if (turn / 2 % 2 && each.segments.size() > 1) {
    other.checkpointed = true;
    fail(title(recorded, each, other), difference(replay(recorded, each, codes, other), each, type));
    ++runs;
  }
  if (turn / 2 % 2 == 0 && !recorded.gradients && dense_chain(each.levels)) {
    fail(title(recorded, each, one) + ", step by step", difference(replay_steps(recorded, each, codes[0], one), each, type));
    ++runs;
  }
  return runs;
}

// Every structure on every instruction set; the types take turns, at random, so that none always goes with the same ones.
int64_t replay_all(const Recorded& recorded, uint64_t& turn) {
  const std::vector<rit::Code> codes = recorded.codes();
  int64_t runs = 0;
  for (const rit::Backend* backend : rit::backends())
    for (const Case& each : recorded.cases) {
      turn = turn * 6364136223846793005 + 1442695040888963407;
      runs += replay_case(recorded, each, codes, backend, static_cast<rit::Type>((turn >> 40) % rit::TYPES), turn >> 50);
    }
  return runs;
}

// More threads than there are rows, processors, or places in the engine.
void many_threads(const Recorded& recorded) {
  const std::vector<rit::Code> codes = recorded.codes();
  for (const Case& each : recorded.cases)
    for (int threads : {7, 300}) {
      if (threads == 300 && &each != &recorded.cases.front() && &each != &recorded.cases.back()) continue;  // each takes its memory
      const Way way{rit::backends().back(), rit::FLOAT32, threads, ROWS};
      fail(title(recorded, each, way), difference(replay(recorded, each, codes, way), each, way.type));
    }
}

// Several threads that call at once, as Python's may.
void callers(const std::vector<Recorded>& programs) {
  std::vector<std::thread> threads;
  for (int number = 0; number < 3; ++number)
    threads.emplace_back([&programs, number] {
      for (size_t i = 0; i < programs.size(); ++i) {
        const Recorded& recorded = programs[(i + static_cast<size_t>(number)) % programs.size()];
        const std::vector<rit::Code> codes = recorded.codes();
        for (const Case& each : recorded.cases) {
          const Way way{rit::backends().back(), rit::FLOAT32, 1 + number, ROWS};
          const std::string wrong = difference(replay(recorded, each, codes, way), each, way.type);
          if (!wrong.empty()) std::fprintf(stderr, "  called at once: %s%s\n", title(recorded, each, way).c_str(), wrong.c_str());
          if (!wrong.empty()) std::exit(1);
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
}

// A child does not have its parent's threads.
void fork_and_run(const Recorded& recorded) {
  const auto task = [](void* context) {
    many_threads(*static_cast<const Recorded*>(context));
    if (failures) _exit(1);
  };
  fail("after a fork", in_child(task, const_cast<Recorded*>(&recorded)));
}

// Mistakes that must be noticed: x one element short, and a counter that two threads change.
void check_the_checker(const Recorded& recorded) {
  if (threads_watched) {
    const auto race = [](void*) {
      int counter = 0;
      std::thread one([&] { ++counter; }), other([&] { ++counter; });
      one.join();
      other.join();
      if (counter == 3) std::printf("%d", counter);
    };
    if (in_child(race, nullptr).empty()) fail("a planted race", " was not noticed");
    return;
  }
  struct Context {
    const Recorded& recorded;
    const Case& each;
    Way way;
  };
  const auto run = [](void* data) {
    const auto& [recorded, each, way] = *static_cast<const Context*>(data);
    replay(recorded, each, recorded.codes(), way);
  };
  for (const rit::Backend* backend : rit::backends())
    for (rit::Type type : {rit::FLOAT32, rit::FLOAT64})
      for (const Case* each : {&recorded.cases.front(), &recorded.cases.back()}) {  // chains, and a forest
        Context context{recorded, *each, {backend, type, 2, ROWS}};
        context.way.missing_x = 1;
        if (in_child(run, &context).empty()) fail(title(recorded, *each, context.way), ": a planted overrun was not noticed");
      }
}

// Of the state's first field.
int64_t first_size(const Recorded& recorded) { return recorded.programs[0].ints[2]; }

int replay_files(const std::vector<std::string>& paths) {
  std::vector<Recorded> small;
  int64_t runs = 0, cases = 0;
  uint64_t turn = 0;
  for (const std::string& path : paths) {
    const Recorded recorded = read_recorded(path);
    if (small.empty()) check_the_checker(recorded);
    runs += replay_all(recorded, turn);
    cases += static_cast<int64_t>(recorded.cases.size());
    if (small.empty() || (first_size(recorded) <= 7 && small.size() < 12)) small.push_back(recorded);
  }
  many_threads(small.back());
  callers(small);
  if (!threads_watched && !std::getenv("RITORNELLO_EMULATED")) fork_and_run(small.back());  // emulators start no threads in a forked child
  std::printf("  %zu programs, %lld structures, %lld runs on %zu instruction sets: %d failures\n", paths.size(), static_cast<long long>(cases),
              static_cast<long long>(runs), rit::backends().size(), failures);
  return failures;
}

int run_malformed(int count, const std::vector<std::string>& paths) {
  std::vector<Recorded> programs;
  for (const std::string& path : paths) {
    Recorded recorded = read_recorded(path);
    if (first_size(recorded) <= 17) programs.push_back(std::move(recorded));
  }
  const int accepted = refusals();
  std::printf("  %d mistakes accepted\n", accepted);
  return accepted + mutations(programs, count, RIT_WATCHED == ADDRESS ? 0 : 1000000);
}

}  // namespace

int main(int count, char** arguments) {
  setenv("RITORNELLO_OWN_THREADS", "1", 1);
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const std::vector<std::string> words(arguments + 1, arguments + count);
  try {
    if (words.size() > 1 && words[0] == "replay") return replay_files({words.begin() + 1, words.end()}) != 0;
    if (words.size() > 2 && words[0] == "malformed") return run_malformed(std::atoi(words[1].c_str()), {words.begin() + 2, words.end()}) != 0;
  } catch (const std::exception& error) {
    std::printf("  %s\n", error.what());
    return 1;
  }
  std::fprintf(stderr, "driver replay FILES | driver malformed N FILES\n");
  return 2;
}
