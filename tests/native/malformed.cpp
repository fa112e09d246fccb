#include "malformed.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <stdexcept>

#include "replay.h"

using rit::Code;

std::string in_child(void (*task)(void*), void* context) {
  std::FILE* const said = std::tmpfile();
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    dup2(fileno(said), 2);
    alarm(60);
    task(context);
    _exit(0);
  }
  int status;
  waitpid(child, &status, 0);
  std::string text;
  std::rewind(said);
  for (char part[4096]; const size_t size = std::fread(part, 1, sizeof part, said);) text.append(part, size);
  std::fclose(said);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return "";
  const std::string how = WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "status " + std::to_string(WEXITSTATUS(status));
  return how + "\n" + text;
}

// --- mistakes, one by one

namespace {

// A program of one field of 3 elements, x of 3, one parameter; every space is 16 long.
struct Draft {
  Integers routines[rit::ROUTINES] = {{0}, {0}, {0}, {0}};
  Integers packs, reductions{0};
  int pack_count = 0;

  Integers ints() const {
    Integers all{1, 1, 3, 3, 16, 16, 16, 16, pack_count, 1};
    for (const Integers& routine : routines) all.insert(all.end(), routine.begin(), routine.end());
    all.insert(all.end(), packs.begin(), packs.end());
    all.insert(all.end(), {0, 0});
    all.insert(all.end(), reductions.begin(), reductions.end());
    return all;
  }
};

int64_t number_of(const std::string& op) {
  const auto& names = rit::op_names();
  return std::find(names.begin(), names.end(), op) - names.begin();
}

constexpr int PREV = rit::FIRST_FIELD, OUT = PREV + 1, DOUT = OUT + 1, CARRY = DOUT + 1, DPREV = CARRY + 1;

Draft with(rit::Routine routine, const std::string& op, int64_t size, int64_t extra, Integers out, Integers a) {
  Draft draft;
  draft.routines[routine] = {1, 0, 1, number_of(op), size, extra, out[0], out[1], a[0], a[1], rit::CONST, 0, rit::CONST, 0};
  return draft;
}

Draft copies(rit::Routine routine, int to, int from) { return with(routine, "copy", 3, 0, {to, 0}, {from, 0}); }

Draft product(rit::Routine routine, int64_t lefts, int left, int start) {
  Draft draft;
  draft.routines[routine] = {1, 1, 3, rit::SCRATCH, 0, start, 0, 0, lefts};
  for (int64_t i = 0; i < lefts; ++i) draft.routines[routine].insert(draft.routines[routine].end(), {left, 0, 1});
  draft.pack_count = 1;
  draft.packs = {3, lefts};
  for (int64_t i = 0; i < lefts; ++i) draft.packs.insert(draft.packs.end(), {0, 0, 0, 0, 1});
  return draft;
}

Draft reduction(bool matrix, int left, int right) {
  Draft draft;
  draft.reductions = {1, 0, 0, 0, matrix, left, 0, 3, right, 0, right < 0 ? 0 : 3};
  return draft;
}

int refused(const char* what, bool accepted, bool wanted = false) {
  if (accepted == wanted) return 0;
  std::printf("  %s: %s\n", wanted ? "refused" : "accepted", what);
  return 1;
}

int code_is(bool wanted, const char* what, const Draft& draft) {
  bool accepted = true;
  try {
    rit::read_code(draft.ints(), {});
  } catch (const std::invalid_argument&) {
    accepted = false;
  }
  return refused(what, accepted, wanted);
}

int levels_are(bool wanted, const char* what, const LevelInts& ints) {
  bool accepted = true;
  try {
    ints.store();
  } catch (const std::invalid_argument&) {
    accepted = false;
  }
  return refused(what, accepted, wanted);
}

}  // namespace

int refusals() {
  using namespace rit;
  int bad = 0;
  bad += code_is(true, "a copy of x", copies(LOOP, OUT, X));
  bad += code_is(true, "a product of the state", product(LOOP, 3, PREV, -1));
  bad += code_is(true, "a product that starts from a gradient", product(BACK, 3, CARRY, CARRY));
  bad += code_is(true, "a weight's gradient", reduction(true, FRAME, PREV));
  bad += code_is(true, "a vector's gradient", reduction(false, OUT, -1));
  bad += code_is(true, "a vector's gradient that is x's too", reduction(false, DX, -1));
  bad += code_is(false, "the largest of no numbers", with(LOOP, "max", 1, 0, {TEMP, 0}, {X, 3}));
  bad += code_is(false, "a sum for which there is no room", with(LOOP, "sum", 0, 3, {TEMP, 16}, {X, 0}));
  bad += code_is(false, "an outer product with nothing", with(LOOP, "outer", 3, 0, {TEMP, 0}, {X, 0}));
  bad += code_is(false, "an inner product of 2^32 elements", with(LOOP, "outer_right", 16, 1 << 28, {TEMP, 0}, {TEMP, 0}));
  bad += code_is(false, "a product of 65536 pieces", product(LOOP, 1 << 16, PREV, -1));
  bad += code_is(false, "a state before the loop", copies(BEFORE, TEMP, PREV));
  bad += code_is(false, "a result before the loop", copies(BEFORE, OUT, X));
  bad += code_is(false, "a gradient in the loop", copies(LOOP, OUT, DOUT));
  bad += code_is(false, "x's gradient in the loop", copies(LOOP, DX, X));
  bad += code_is(false, "a product of what is not there", product(LOOP, 3, CARRY, -1));
  bad += code_is(false, "a product that starts from what is not there", product(BEFORE, 3, X, PREV));
  bad += code_is(false, "a product of what only a few rows have", product(LOOP, 3, TEMP, -1));
  bad += code_is(false, "a product that starts from what only a few rows have", product(LOOP, 3, X, TEMP));
  bad += code_is(false, "a change to x", copies(LOOP, X, OUT));
  bad += code_is(false, "a change to a constant", copies(LOOP, CONST, OUT));
  bad += code_is(false, "a change to a predecessor", copies(LOOP, PREV, OUT));
  bad += code_is(false, "a change to a result, afterwards", copies(BACK, OUT, CARRY));
  for (int space : {+CONST, +TEMP, +SCRATCH, CARRY, DPREV}) {
    bad += code_is(false, "a gradient from what is gone, left", reduction(true, space, X));
    bad += code_is(false, "a gradient from what is gone, right", reduction(true, X, space));
    bad += code_is(false, "a vector's gradient from what is gone", reduction(false, space, -1));
  }
  bad += code_is(false, "a weight's gradient of one side", reduction(true, X, -1));

  const LevelInts good{2, 1, {0, 2, 4}, {1, 2, 3, 4}, {5, 6}, {0, 1, 0, 1}};
  const auto changed = [&](auto change) {
    LevelInts ints = good;
    change(ints);
    return ints;
  };
  constexpr int64_t huge = int64_t{1} << 62;
  bad += levels_are(true, "two chains", good);
  bad += levels_are(true, "two chains without owners", changed([](LevelInts& l) { l.owner.clear(); }));
  bad += levels_are(false, "a predecessor in the same level", changed([](LevelInts& l) { l.source[3] = 5; }));
  bad += levels_are(false, "another entry's row", changed([](LevelInts& l) { l.source = {1, 2, 4, 3}; }));
  bad += levels_are(false, "another entry's row, without owners", changed([](LevelInts& l) { l.source = {1, 2, 4, 3}, l.owner.clear(); }));
  bad += levels_are(false, "another entry's own state", changed([](LevelInts& l) { l.source = {2, 1, 3, 4}; }));
  bad += levels_are(false, "another entry's final row", changed([](LevelInts& l) { l.last = {6, 5}; }));
  bad += levels_are(false, "rows past counting", changed([](LevelInts& l) { l.starts = {0, 1, huge}, l.slots = 4, l.source.clear(); }));
  bad += levels_are(false, "rows that wrap round", changed([](LevelInts& l) { l.starts = {0, std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()}; }));
  return bad;
}

// --- random changes

namespace {

struct Random {
  uint64_t state;

  uint64_t next() {  // splitmix64
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
};

struct Mutant {
  const Recorded* program;
  const Case* each;
  Integers ints;
  LevelInts levels;
  std::string text;
};

int64_t other_number(Random& random, const Integers& ints, int64_t old) {
  switch (random.below(8)) {
    case 0: return 0;
    case 1: return old + 1;
    case 2: return old - 1;
    case 3: return old + random.below(64) - 32;
    case 4: return random.below(64);
    case 5: return int64_t{1} << random.below(63);
    case 6: return -random.below(4);
    default: return ints[random.below(static_cast<int64_t>(ints.size()))];
  }
}

void change(Random& random, Integers& ints, const char* name, std::string& text) {
  if (ints.empty()) {
    ints.push_back(random.below(3));
    text += std::string(" ") + name + " = {" + std::to_string(ints[0]) + "}";
    return;
  }
  const int64_t at = random.below(static_cast<int64_t>(ints.size()));
  const int64_t what = random.below(40), old = ints[at];
  if (what == 0) ints.erase(ints.begin() + at);
  else if (what == 1) ints.insert(ints.begin() + at, other_number(random, ints, old));
  else if (what == 2) ints.resize(at);
  else ints[at] = other_number(random, ints, old);
  text += std::string(" ") + name + "[" + std::to_string(at) + "] " + std::to_string(old) +
          (what == 0 ? " removed" : what == 2 ? " cut off" : (what == 1 ? " preceded by " : " -> ") + std::to_string(ints[at]));
}

Mutant mutant(const std::vector<Recorded>& programs, uint64_t seed) {
  Random random{seed};
  const Recorded& program = programs[random.below(static_cast<int64_t>(programs.size()))];
  const Case& each = program.cases[random.below(static_cast<int64_t>(program.cases.size()))];
  Mutant made{&program, &each, program.ints, each.levels, program.name + " " + each.name + ":"};
  const bool of_levels = random.below(4) == 0;
  for (int64_t changes = 1 + random.below(3); changes > 0; --changes) {
    LevelInts& l = made.levels;
    if (!of_levels) change(random, made.ints, "ints", made.text);
    else if (const int64_t which = random.below(6); which == 4) {
      l.entries = other_number(random, l.starts, l.entries);
      made.text += " entries -> " + std::to_string(l.entries);
    } else if (which == 5) {
      l.slots = static_cast<int>(other_number(random, l.starts, l.slots));
      made.text += " slots -> " + std::to_string(l.slots);
    } else {
      Integers* const arrays[] = {&l.starts, &l.source, &l.last, &l.owner};
      const char* const names[] = {"starts", "source", "last", "owner"};
      change(random, *arrays[which], names[which], made.text);
    }
  }
  return made;
}

// What the caller is to see to: the integers say nothing of it.
bool fits(const Recorded& program, const Code& code, const rit::LevelStore& levels) {
  const auto& parameters = program.parameters;
  if (code.parameters > static_cast<int>(parameters.size()) || (levels.slots() != code.slots)) return false;
  for (const rit::Pack& pack : code.packs)
    for (int i = 0; i < pack.part_count; ++i) {
      const rit::PackPart& part = code.parts[pack.parts + i];
      const Parameter& parameter = parameters[part.parameter];
      if (part.row + int64_t{part.back ? part.depth : pack.size} > parameter.rows) return false;
      if (part.column + int64_t{part.back ? pack.size : part.depth} > parameter.columns) return false;
    }
  for (const rit::ConstVector& vector : code.vectors)
    if (vector.size > parameters[vector.parameter].columns) return false;
  for (const rit::Reduction& each : code.reductions) {
    const Parameter& parameter = parameters[each.parameter];
    const int64_t rows = each.matrix ? parameter.rows : parameter.rows * parameter.columns;
    if (each.row + int64_t{each.left.size} > rows || (each.matrix && each.column + int64_t{each.right.size} > parameter.columns)) return false;
  }
  return true;
}

// Whether it can be run in the memory of a test.
bool small(const Code& code, const rit::Levels& levels) {
  double elements = code.const_size + 8. * code.temp_size + 64. * 8 * code.scratch_size, row = 4. * code.input + 2. * code.frame_size + code.scratch_size;
  for (int size : code.sizes) row += size * (8. + 2. * code.slots);
  for (const rit::Pack& pack : code.packs) elements += (pack.size + 64.) * pack.depth;
  for (const rit::Reduction& each : code.reductions) elements += 600. * each.right.size;
  return elements + row * (static_cast<double>(levels.rows) + 3. * static_cast<double>(levels.entries) + 1) < 1 << 23;
}

enum Outcome { WAITING, REFUSED, ILL_FITTING, LARGE, RUN, RUNNING, OUTCOMES };

Outcome attempt(const Mutant& made, uint64_t seed, char& outcome) {
  try {
    const Code code = rit::read_code(made.ints, made.program->constants);
    const rit::LevelStore levels = made.levels.store();
    if (!fits(*made.program, code, levels)) return ILL_FITTING;
    if (!small(code, levels.levels())) return LARGE;
    outcome = RUNNING;
    const auto& backends = rit::backends();
    const Way way{backends[seed % backends.size()], seed % 3 ? rit::FLOAT32 : rit::FLOAT64, 1 + static_cast<int>(seed % 4), static_cast<Layout>(seed % LAYOUTS)};
    Recorded program = *made.program;
    program.wants_x = true;
    Case each = *made.each;
    each.d_out_given.assign(each.d_out_given.size(), true);
    replay(program, each, code, levels, way);
  } catch (const std::invalid_argument&) {
    return REFUSED;
  }
  return RUN;
}

struct Batch {
  const std::vector<Recorded>& programs;
  int count;
  uint64_t seed;
  char* outcomes;  // shared with the parent
};

void run_batch(void* context) {
  const Batch& batch = *static_cast<const Batch*>(context);
  for (int i = 0; i < batch.count; ++i) {
    if (batch.outcomes[i] != WAITING) continue;
    alarm(60);
    const uint64_t seed = batch.seed + static_cast<uint64_t>(i);
    batch.outcomes[i] = RUNNING;
    batch.outcomes[i] = static_cast<char>(attempt(mutant(batch.programs, seed), seed, batch.outcomes[i]));
  }
}

// The sanitizer's line and the engine's innermost function, or how the process ended.
std::string signature(const std::string& said) {
  const size_t error = std::min(said.find("runtime error:"), said.find("Sanitizer:"));
  std::string found = said.substr(0, said.find('\n'));
  if (error != std::string::npos) found = said.substr(error, std::min(said.find('\n', error), said.find(" 0x", error)) - error);
  const size_t frame = said.find(" in rit::");
  if (frame != std::string::npos) found += said.substr(frame, said.find('\n', frame) - frame);
  return found;
}

}  // namespace

int mutations(const std::vector<Recorded>& programs, int count, uint64_t seed) {
  char* const outcomes = static_cast<char*>(mmap(nullptr, count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  Batch batch{programs, count, seed, outcomes};
  std::map<std::string, std::pair<int, std::string>> endings;
  int ended = 0;
  while (std::find(outcomes, outcomes + count, WAITING) != outcomes + count && ended < 60) {
    const std::string said = in_child(run_batch, &batch);
    if (said.empty()) continue;
    const int at = static_cast<int>(std::find(outcomes, outcomes + count, RUNNING) - outcomes);
    if (at == count) {
      std::printf("%s\n", said.c_str());
      return 1;
    }
    auto& ending = endings[signature(said)];
    if (ending.first++ == 0) ending.second = mutant(programs, seed + static_cast<uint64_t>(at)).text + "\n" + said;
    outcomes[at] = OUTCOMES;
    ++ended;
  }
  const auto number = [&](Outcome outcome) { return static_cast<int>(std::count(outcomes, outcomes + count, outcome)); };
  std::printf("  %d mutants: %d refused, %d accepted and run, %d for other parameters or levels, %d too large, %d not tried; %d ended badly\n", count,
              number(REFUSED), number(RUN), number(ILL_FITTING), number(LARGE), number(WAITING), ended);
  for (const auto& [name, ending] : endings) std::printf("--- %d times: %s\n%s\n", ending.first, name.c_str(), ending.second.substr(0, 2500).c_str());
  munmap(outcomes, count);
  return ended;
}
