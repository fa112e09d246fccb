#include "malformed.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
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

template <class Ints> int structure_is(bool wanted, const char* what, const Ints& ints) {
  bool accepted = true;
  try {
    ints.store();
  } catch (const std::invalid_argument&) {
    accepted = false;
  }
  return refused(what, accepted, wanted);
}

// The same, changed.
template <class Ints, class Change> int but(Ints ints, const char* what, Change change) {
  change(ints);
  return structure_is(false, what, ints);
}

constexpr int64_t huge = int64_t{1} << 62;

int code_refusals() {
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
  bad += code_is(true, "a result before the loop", copies(BEFORE, OUT, X));
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
  return bad;
}

int level_refusals() {
  const LevelInts good{2, {0, 2, 4}, {1, 2, 3, 4}, {5, 6}};
  int bad = structure_is(true, "two chains", good);
  bad += structure_is(true, "two chains of one length", LevelInts{2, {0, 2, 4}, {}, {}});
  bad += but(good, "a predecessor in the same level", [](LevelInts& l) { l.source[3] = 6; });
  bad += but(good, "a predecessor beyond the table", [](LevelInts& l) { l.source[3] = huge; });
  bad += but(good, "a predecessor before the table", [](LevelInts& l) { l.source[3] = -1; });
  bad += but(good, "another entry's row", [](LevelInts& l) { l.source = {1, 2, 4, 3}; });
  bad += but(good, "another entry's own state", [](LevelInts& l) { l.source = {2, 1, 3, 4}; });
  bad += but(good, "rows without a source", [](LevelInts& l) { l.source.pop_back(); });
  bad += but(good, "another entry's final row", [](LevelInts& l) { l.last = {6, 5}; });
  bad += but(good, "a final row beyond the table", [](LevelInts& l) { l.last[1] = 7; });
  bad += but(good, "an entry without a final row", [](LevelInts& l) { l.last.pop_back(); });
  bad += but(good, "no levels' edges", [](LevelInts& l) { l.starts.clear(); });
  bad += but(good, "more rows than entries", [](LevelInts& l) { l.entries = 1, l.last = {5}; });
  bad += but(good, "levels that grow", [](LevelInts& l) { l.starts[1] = 1; });
  bad += but(good, "a level of fewer than no rows", [](LevelInts& l) { l.starts = {0, 2, 1}; });
  bad += but(good, "rows past counting", [](LevelInts& l) { l = {huge, {0, huge}, {}, {}}; });
  bad += but(good, "rows that wrap round", [](LevelInts& l) { l.starts = {0, std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()}; });
  return bad;
}

// Two trees, each of two leaves without a state below a row with two predecessors; the first one's root is above that.
const ForestInts two_trees{2,
                           {0, 4, 0, 0, 0, 0, 4, 2, 0, 0, -1, 1, 6, 1, 4, 2, -1, 1},
                           {3, 4, 5, 6, 7, 0},
                           {9, 8},
                           {0, 0, 1, 1, 0, 1, 0},
                           {0, 2},
                           {}};
enum { START, ROW_COUNT, SOURCE, FIRST, INPUT, KIND, LEVEL_INTS };  // of a level

int forest_row_refusals() {
  int bad = structure_is(true, "two trees", two_trees);
  bad += but(two_trees, "another entry's row", [](ForestInts& f) { f.source[1] = 5; });
  bad += but(two_trees, "another entry's own state", [](ForestInts& f) { f.source[5] = 2; });
  bad += but(two_trees, "a predecessor in the same level", [](ForestInts& f) { f.source[3] = 8; });
  bad += but(two_trees, "a predecessor in a later level", [](ForestInts& f) { f.source[1] = 9; });
  bad += but(two_trees, "a predecessor beyond the table", [](ForestInts& f) { f.source[4] = huge; });
  bad += but(two_trees, "a predecessor before the table", [](ForestInts& f) { f.source[4] = -1; });
  bad += but(two_trees, "rows without a source", [](ForestInts& f) { f.source.pop_back(); });
  bad += but(two_trees, "another entry's final row", [](ForestInts& f) { f.last = {8, 9}; });
  bad += but(two_trees, "a final row beyond the table", [](ForestInts& f) { f.last[0] = 10; });
  bad += but(two_trees, "a final row before the table", [](ForestInts& f) { f.last[0] = -1; });
  bad += but(two_trees, "an entry without a final row", [](ForestInts& f) { f.last.pop_back(); });
  bad += but(two_trees, "owners that descend", [](ForestInts& f) { f.owner = {1, 1, 0, 0, 0, 1, 0}; });
  bad += but(two_trees, "an owner who is not there", [](ForestInts& f) { f.owner[3] = 2; });
  bad += but(two_trees, "an owner before the first", [](ForestInts& f) { f.owner[0] = -1; });
  bad += but(two_trees, "more owners than rows", [](ForestInts& f) { f.owner.push_back(1); });
  bad += but(two_trees, "fewer owners than rows", [](ForestInts& f) { f.owner.pop_back(); });
  bad += but(two_trees, "entries past counting", [](ForestInts& f) { f.entries = huge; });
  bad += but(two_trees, "fewer than no entries", [](ForestInts& f) { f.entries = -1; });
  return bad;
}

// A change to one number of one level.
int level_but(const char* what, int level, int number, int64_t value) {
  return but(two_trees, what, [=](ForestInts& f) { f.levels[level * LEVEL_INTS + number] = value; });
}

int forest_level_refusals() {
  int bad = level_but("a level that begins late", 1, START, 5);
  bad += level_but("a level that begins early", 1, START, 3);
  bad += level_but("a level that ends early", 2, ROW_COUNT, 0);
  bad += level_but("a level that ends late", 2, ROW_COUNT, 2);
  bad += level_but("a level of fewer than no rows", 1, ROW_COUNT, -1);
  bad += level_but("rows past counting", 1, ROW_COUNT, huge);
  bad += level_but("sources beyond the array", 2, SOURCE, 5);
  bad += level_but("sources past counting", 2, SOURCE, huge);
  bad += level_but("sources before the array", 1, SOURCE, -1);
  bad += level_but("rows of a kind that are skipped", 2, FIRST, 3);
  bad += level_but("rows of a kind that are numbered twice", 2, FIRST, 0);
  bad += level_but("another kind's numbers", 1, FIRST, 4);
  bad += level_but("inputs before the first", 0, INPUT, -2);
  bad += level_but("inputs past counting", 0, INPUT, huge);
  bad += level_but("a kind beyond the last", 2, KIND, 2);
  bad += level_but("a kind before the first", 0, KIND, -1);
  bad += level_but("a kind that is 0 in 32 bits", 0, KIND, int64_t{1} << 32);
  bad += but(two_trees, "a level cut off", [](ForestInts& f) { f.levels.pop_back(); });
  bad += but(two_trees, "a level left out", [](ForestInts& f) { f.levels.resize(2 * LEVEL_INTS); });
  bad += but(two_trees, "more slots than there may be", [](ForestInts& f) { f.slots[1] = rit::most_slots + 1; });
  bad += but(two_trees, "fewer than no slots", [](ForestInts& f) { f.slots[0] = -1; });
  bad += but(two_trees, "no kinds", [](ForestInts& f) { f = {1, {}, {}, {1}, {}, {}, {}}; });
  return bad;
}

}  // namespace

int refusals() { return code_refusals() + level_refusals() + forest_row_refusals() + forest_level_refusals(); }

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
  const Recorded* recorded;
  Case each;
  std::vector<Integers> ints;  // of its programs
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

struct Named {
  const char* name;
  Integers* ints;
};

std::vector<Named> arrays_of(Case& each) {
  ForestInts& f = each.forest;
  if (each.has_forest()) return {{"levels", &f.levels}, {"source", &f.source}, {"last", &f.last}, {"owner", &f.owner}, {"slots", &f.slots}};
  LevelInts& l = each.levels;
  return {{"starts", &l.starts}, {"source", &l.source}, {"last", &l.last}};
}

void change_structure(Random& random, Case& each, std::string& text) {
  const std::vector<Named> arrays = arrays_of(each);
  const size_t which = static_cast<size_t>(random.below(static_cast<int64_t>(arrays.size()) + 1));
  if (which < arrays.size()) return change(random, *arrays[which].ints, arrays[which].name, text);
  int64_t& entries = each.has_forest() ? each.forest.entries : each.levels.entries;
  entries = other_number(random, {entries / 2}, entries);
  text += " entries -> " + std::to_string(entries);
}

Mutant mutant(const std::vector<Recorded>& programs, uint64_t seed) {
  Random random{seed};
  const Recorded& recorded = programs[random.below(static_cast<int64_t>(programs.size()))];
  const Case& each = recorded.cases[random.below(static_cast<int64_t>(recorded.cases.size()))];
  Mutant made{&recorded, each, {}, recorded.name + " " + each.name + ":"};
  for (const Program& program : recorded.programs) made.ints.push_back(program.ints);
  const bool of_structure = random.below(each.has_forest() ? 2 : 4) == 0;
  const int64_t which = random.below(static_cast<int64_t>(made.ints.size()));
  for (int64_t changes = 1 + random.below(3); changes > 0; --changes) {
    if (of_structure) change_structure(random, made.each, made.text);
    else change(random, made.ints[which], ("ints" + std::to_string(which)).c_str(), made.text);
  }
  return made;
}

// What the caller is to see to: the integers say nothing of it.
bool parameters_fit(const std::vector<Parameter>& parameters, const Code& code) {
  if (code.parameters > static_cast<int>(parameters.size())) return false;
  for (const rit::Pack& pack : code.packs)
    for (int i = 0; i < pack.part_count; ++i) {
      const rit::PackPart& part = code.parts[pack.parts + i];
      const Parameter& parameter = parameters[part.parameter];
      if (part.row + int64_t{part.back ? part.depth : pack.size} > parameter.rows) return false;
      if (part.column + int64_t{part.back ? pack.size : part.depth} > parameter.columns) return false;
    }
  for (const rit::ConstVector& vector : code.vectors)
    if (vector.size > parameters[vector.parameter].columns) return false;
  for (const rit::GradientSum& sum : code.sums) {
    const Parameter& parameter = parameters[sum.parameter];
    const int64_t rows = sum.matrix ? parameter.rows : parameter.rows * parameter.columns;
    for (const rit::GradientSum::Product& product : sum.products) {
      if (product.row + int64_t{product.left.size} > rows) return false;
      for (const rit::GradientSum::Term& term : product.terms)
        if (term.column + int64_t{sum.rights[term.right].size} > parameter.columns) return false;
    }
  }
  return true;
}

bool names_input(const Code& code) {
  const auto is_input = [](int space) { return space == rit::X || space == rit::DX; };
  bool found = false;
  for (const std::vector<rit::Step>& routine : code.routines)
    for (const rit::Step& step : routine) found |= step.product && (is_input(step.start.space) || is_input(step.out.space));
  for (const rit::Instruction& i : code.instructions) found |= is_input(i.out.space) || is_input(i.a.space) || is_input(i.b.space) || is_input(i.c.space);
  for (const rit::Left& left : code.lefts) found |= is_input(left.space);
  for (const rit::GradientSum& sum : code.sums) {
    for (const rit::Left& right : sum.rights) found |= is_input(right.space);
    for (const rit::GradientSum::Product& product : sum.products) found |= is_input(product.left.space);
  }
  return found;
}

bool kinds_fit(const std::vector<Code>& codes, const Integers& programs, const rit::ForestStore& store) {
  if (store.slots().size() != programs.size()) return false;
  for (size_t k = 0; k < programs.size(); ++k)
    if (codes[programs[k]].slots != store.slots()[k]) return false;
  for (const Code& code : codes)
    if (code.sizes != codes[0].sizes || code.input != codes[0].input) return false;
  const rit::ForestLevels& forest = store.forest();
  for (const rit::ForestLevel* level = forest.levels; level < forest.levels + forest.count; ++level)
    if (level->x < 0 && names_input(codes[programs[level->kind]])) return false;
  return true;
}

// How many rows a structure has, of entries, of its own and of x; none if the codes do not fit it.
struct Extent {
  int64_t entries, rows, x_rows;
};

std::optional<Extent> fitted(const Mutant& made, const std::vector<Code>& codes) {
  for (size_t i = 0; i < codes.size(); ++i)
    if (!parameters_fit(made.recorded->programs[i].parameters, codes[i])) return {};
  if (!made.each.has_forest()) {
    const rit::LevelStore store = made.each.levels.store();
    const rit::Levels& levels = store.levels();
    return codes[0].slots == 1 ? std::optional<Extent>({levels.entries, levels.rows, levels.rows}) : std::nullopt;
  }
  const rit::ForestStore store = made.each.forest.store();
  const rit::ForestLevels& forest = store.forest();
  return kinds_fit(codes, made.each.forest.programs, store) ? std::optional<Extent>({forest.entries, forest.rows, rows_of_x(forest)}) : std::nullopt;
}

// Whether it can be run in the memory of a test.
bool small(const std::vector<Code>& codes, const Extent& extent) {
  const auto [entries, rows, x_rows] = extent;
  double elements = 0;
  for (const Code& code : codes) {
    double row = 4. * code.input + 2. * code.frame_size + code.scratch_size, states = 0;
    for (int size : code.sizes) states += size * (8. + 2. * code.slots);
    elements += code.const_size + 8. * code.temp_size + 64. * 8 * (code.scratch_size + code.frame_size + states);
    for (const rit::Pack& pack : code.packs) elements += (pack.size + 64.) * pack.depth;
    for (const rit::GradientSum& sum : code.sums)
      for (const rit::Left& right : sum.rights) elements += 600. * right.size;
    elements += (row + states) * (static_cast<double>(std::max(rows, x_rows)) + 3. * static_cast<double>(entries) + 1);
  }
  return elements < 1 << 23;
}

enum Outcome { WAITING, REFUSED, ILL_FITTING, LARGE, RUN, RUNNING, OUTCOMES };

Outcome attempt(const Mutant& made, uint64_t seed, char& outcome) {
  try {
    std::vector<Code> codes;
    for (size_t i = 0; i < made.ints.size(); ++i) codes.push_back(rit::read_code(made.ints[i], made.recorded->programs[i].constants));
    const std::optional<Extent> extent = fitted(made, codes);
    if (!extent) return ILL_FITTING;
    if (!small(codes, *extent)) return LARGE;
    outcome = RUNNING;
    const auto& backends = rit::backends();
    const rit::Type type = seed % 3 ? rit::FLOAT32 : rit::FLOAT64;
    const Way way{backends[seed % backends.size()], type, 1 + static_cast<int>(seed % 4), static_cast<Layout>(seed % LAYOUTS)};
    Recorded recorded = *made.recorded;
    recorded.wants_x = true;
    Case each = made.each;
    each.d_out_given.assign(each.d_out_given.size(), true);
    replay(recorded, each, codes, way);
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
  std::printf("  %d mutants: %d refused, %d accepted and run, %d for other parameters or structures, %d too large, %d not tried; %d ended badly\n", count,
              number(REFUSED), number(RUN), number(ILL_FITTING), number(LARGE), number(WAITING), ended);
  for (const auto& [name, ending] : endings) std::printf("--- %d times: %s\n%s\n", ending.first, name.c_str(), ending.second.substr(0, 2500).c_str());
  munmap(outcomes, count);
  return ended;
}
