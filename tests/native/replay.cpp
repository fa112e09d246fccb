#include "replay.h"

#include <algorithm>
#include <cmath>
#include <cstring>

using rit::Call;
using rit::Code;
using rit::most_fields;

namespace {

template <class T> Exact<T> filled(const Numbers& numbers, int64_t count) {
  Exact<T> made(count);
  for (int64_t i = 0; i < count; ++i) made[i] = numbers.empty() ? T(0.5) : static_cast<T>(numbers[i % numbers.size()]);
  return made;
}

template <class T> Numbers numbers_of(const Exact<T>& array) { return Numbers(array.data(), array.data() + array.count()); }

template <class T> std::vector<Numbers> numbers_of(const std::vector<Exact<T>>& arrays) {
  std::vector<Numbers> found;
  for (const Exact<T>& array : arrays) found.push_back(numbers_of(array));
  return found;
}

// Arrays and where they lie; null ones are not given.
template <class T> struct Arrays {
  std::vector<Exact<T>> arrays;
  std::vector<void*> addresses;

  void add(Exact<T> array, bool given = true) {
    addresses.push_back(given ? array.data() : nullptr);
    arrays.push_back(given ? std::move(array) : Exact<T>());
  }
  void* const* outputs() const { return addresses.data(); }
  const void* const* inputs() const { return addresses.data(); }
};

template <class T> struct Parameters {
  Arrays<T> values;
  Integers strides, shapes;

  Parameters(const Program& program, Layout layout) {
    for (const Parameter& parameter : program.parameters) {
      const int64_t gap = layout == GAPS ? 2 : 1, rows = parameter.rows, columns = parameter.columns;
      const int64_t down = !parameter.matrix ? 0 : layout == COLUMNS ? 1 : gap * columns + (gap > 1);
      const int64_t across = parameter.matrix && layout == COLUMNS ? rows : gap;
      Exact<T> memory(rows && columns ? (rows - 1) * down + (columns - 1) * across + 1 : 0);
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t column = 0; column < columns; ++column) memory[row * down + column * across] = static_cast<T>(parameter.values[row * columns + column]);
      values.add(std::move(memory));
      strides.insert(strides.end(), {down, across});
      shapes.insert(shapes.end(), {rows, columns});
    }
  }
};

template <class T> Arrays<T> filled_fields(const Code& code, const std::vector<Numbers>& numbers, int64_t rows) {
  Arrays<T> made;
  for (int field = 0; field < code.fields; ++field) made.add(filled<T>(numbers[field % numbers.size()], rows * code.sizes[field]));
  return made;
}

template <class T> Arrays<T> given_fields(const Code& code, const std::vector<Numbers>& numbers, const std::vector<bool>& given, int64_t rows) {
  Arrays<T> made;
  for (int field = 0; field < code.fields; ++field)
    made.add(filled<T>(numbers[field % numbers.size()], rows * code.sizes[field]), given[field % given.size()]);
  return made;
}

template <class T> Arrays<T> empty_fields(const Code& code, int64_t rows, int kept) {
  Arrays<T> made;
  for (int field = 0; field < code.fields; ++field) made.add(Exact<T>(rows * code.sizes[field]), field < kept);
  return made;
}

// What a run over a structure reads and writes, parameters aside.
template <class T> struct Rows {
  Exact<T> x, d_x;
  Arrays<T> entry, blank, out, last, d_out, d_last, d_entry, d_blank;

  // `kept`: how many fields are kept of all rows.
  Rows(const Recorded& recorded, const Case& each, const Code& code, int64_t entries, int64_t rows, int64_t x_rows, int kept, int missing_x)
      : x(filled<T>(each.x, x_rows * code.input - missing_x)),
        entry(filled_fields<T>(code, each.entry, entries)),
        blank(filled_fields<T>(code, each.blank, 1)),
        out(empty_fields<T>(code, rows, kept)),
        last(empty_fields<T>(code, entries, most_fields)) {
    if (!recorded.gradients) return;
    if (recorded.wants_x) d_x = Exact<T>(x_rows * code.input);
    d_out = given_fields<T>(code, each.d_out, each.d_out_given, rows);
    d_last = given_fields<T>(code, each.d_last, each.d_last_given, entries);
    d_entry = empty_fields<T>(code, entries, most_fields);
    d_blank = empty_fields<T>(code, 1, most_fields);
  }

  Call call(const Case& each, const Way& way) const {
    Call call{};
    call.threads = way.threads;
    call.seed = each.seed;
    call.x = x.data();
    call.entry = entry.inputs();
    call.blank = blank.inputs();
    call.out = out.outputs();
    call.last = last.outputs();
    return call;
  }

  void give_gradients(Call& call) const {
    call.last = nullptr;
    call.d_out = d_out.inputs();
    call.d_last = d_last.inputs();
    call.d_x = d_x.data();
    call.d_entry = d_entry.outputs();
    call.d_blank = d_blank.outputs();
  }

  Results results() const {
    return {numbers_of(out.arrays), numbers_of(last.arrays), numbers_of(d_x), numbers_of(d_entry.arrays), numbers_of(d_blank.arrays), {}};
  }
};

// What rows of a kind have: a code with its parameters, and what comes of them.
template <class T> struct Kind {
  const Code* code;
  Parameters<T> parameters;
  Exact<T> frame;
  Arrays<T> gradients;

  Kind(const Program& program, const Code& code, const Way& way, int number)
      : code(&code), parameters(program, static_cast<Layout>((way.layout + number) % LAYOUTS)) {}

  void make_gradients(const Program& program, const Way& way, int64_t rows) {
    if (!way.checkpointed) frame = Exact<T>(rows * rit::frame_stride(*code));
    for (size_t i = 0; i < program.parameters.size(); ++i)
      gradients.add(Exact<T>(program.parameters[i].rows * program.parameters[i].columns), way.all_parameters || i % 2 == 0);
  }

  void give(Call& call) const {
    call.code = code;
    call.frame = frame.data();
    call.parameters = parameters.values.inputs();
    call.parameter_strides = parameters.strides.data();
    call.d_parameters = gradients.outputs();
    call.d_shapes = parameters.shapes.data();
  }
};

std::vector<rit::LevelStore> stores_of(const std::vector<LevelInts>& levels) {
  std::vector<rit::LevelStore> found;
  found.reserve(levels.size());  // none is moved: it points into itself
  for (const LevelInts& each : levels) found.push_back(each.store());
  return found;
}

template <class T> Results run_chains(const Recorded& recorded, const Case& each, const Code& code, const Way& way) {
  const rit::LevelStore store = each.levels.store();
  const rit::Levels& levels = store.levels();
  const bool keep_all = !way.checkpointed && (recorded.gradients || levels.source || way.keep == ALL);
  const int kept = keep_all ? most_fields : way.checkpointed || way.keep == FIRST ? 1 : 0;
  Rows<T> rows(recorded, each, code, levels.entries, levels.rows, levels.rows, kept, way.missing_x);
  rows.d_blank = filled_fields<T>(code, {Numbers{0}}, 1);  // where no row reads it, it stays as it was
  Kind<T> kind(recorded.programs[0], code, way, 0);
  if (recorded.gradients) kind.make_gradients(recorded.programs[0], way, levels.rows);

  const std::vector<rit::LevelStore> stores = stores_of(way.checkpointed ? each.segments : std::vector<LevelInts>());
  std::vector<const rit::Levels*> segments;
  for (const rit::LevelStore& segment : stores) segments.push_back(&segment.levels());
  const int count = static_cast<int>(segments.size());
  const Arrays<T> checkpoints = empty_fields<T>(code, (count - 1) * levels.entries * way.checkpointed, most_fields);

  Call call = rows.call(each, way);
  kind.give(call);
  call.levels = &levels;
  call.checkpoints = checkpoints.outputs();
  if (way.checkpointed) way.backend->forward_checkpointed[way.type](call, segments.data(), count);
  else way.backend->forward[way.type](call);
  if (recorded.gradients) {
    rows.give_gradients(call);
    if (way.checkpointed) way.backend->backward_checkpointed[way.type](call, segments.data(), count);
    else way.backend->backward[way.type](call);
  }
  Results results = rows.results();
  results.d_parameters = numbers_of(kind.gradients.arrays);
  return results;
}

int64_t rows_of_kind(const rit::ForestLevels& forest, int64_t kind) {
  int64_t rows = 0;
  for (int64_t level = 0; level < forest.count; ++level) rows += forest.levels[level].kind == kind ? forest.levels[level].rows : 0;
  return rows;
}

// Those of each program's parameters, summed over the kinds that have it.
template <class T> std::vector<Numbers> summed_gradients(const Recorded& recorded, const Case& each, const std::vector<Kind<T>>& kinds) {
  std::vector<Numbers> all;
  for (size_t number = 0; number < recorded.programs.size(); ++number) {
    std::vector<Numbers> sums;
    for (size_t k = 0; k < kinds.size(); ++k) {
      if (each.forest.programs[k] != static_cast<int64_t>(number)) continue;
      const std::vector<Numbers> found = numbers_of(kinds[k].gradients.arrays);
      sums.resize(found.size());
      for (size_t i = 0; i < found.size(); ++i) {
        sums[i].resize(found[i].size());
        for (size_t j = 0; j < found[i].size(); ++j) sums[i][j] += found[i][j];
      }
    }
    all.insert(all.end(), sums.begin(), sums.end());
  }
  return all;
}

template <class T> Results run_forest(const Recorded& recorded, const Case& each, const std::vector<Code>& codes, const Way& way) {
  const rit::ForestStore store = each.forest.store();
  const rit::ForestLevels& forest = store.forest();
  const Rows<T> rows(recorded, each, codes[0], forest.entries, forest.rows, rows_of_x(forest), most_fields, way.missing_x);
  std::vector<Kind<T>> kinds;
  for (const int64_t number : each.forest.programs) {
    const int k = static_cast<int>(kinds.size());
    kinds.emplace_back(recorded.programs[number], codes[number], way, k);
    if (recorded.gradients) kinds[k].make_gradients(recorded.programs[number], way, rows_of_kind(forest, k));
  }
  std::vector<Call> calls(kinds.size());
  for (size_t k = 0; k < kinds.size(); ++k) kinds[k].give(calls[k]);

  rit::ForestCall call{rows.call(each, way), &forest, calls.data(), static_cast<int>(calls.size())};
  way.backend->forest_forward[way.type](call);
  if (recorded.gradients) {
    rows.give_gradients(call.shared);
    way.backend->forest_backward[way.type](call);
  }
  Results results = rows.results();
  results.d_parameters = summed_gradients(recorded, each, kinds);
  return results;
}

template <class T> Results run(const Recorded& recorded, const Case& each, const std::vector<Code>& codes, const Way& way) {
  return each.has_forest() ? run_forest<T>(recorded, each, codes, way) : run_chains<T>(recorded, each, codes[0], way);
}

template <class T> Results run_steps(const Recorded& recorded, const Case& each, const Code& code, const Way& way) {
  const int64_t rows = each.levels.entries, steps = static_cast<int64_t>(each.levels.starts.size()) - 1;
  const Exact<T> x = filled<T>(each.x, rows * steps * code.input);
  rit::Stepping* stepping;
  {
    const Parameters<T> parameters(recorded.programs[0], way.layout);  // packed when it opens, then no longer needed
    Call call{};
    call.code = &code;
    call.threads = way.threads;
    call.seed = each.seed;
    call.parameters = parameters.values.inputs();
    call.parameter_strides = parameters.strides.data();
    stepping = way.backend->open[way.type](call, static_cast<int>(rows));
  }
  Arrays<T> state = filled_fields<T>(code, each.entry, rows);
  Results results;
  results.out.resize(code.fields);
  for (int64_t step = 0; step < steps; ++step) {
    Exact<T> now(rows * code.input);
    std::memcpy(now.data(), x.data() + step * rows * code.input, sizeof(T) * now.count());
    Arrays<T> next = empty_fields<T>(code, rows, most_fields);
    way.backend->step[way.type](stepping, now.data(), state.inputs(), next.outputs());
    for (int field = 0; field < code.fields; ++field)
      results.out[field].insert(results.out[field].end(), next.arrays[field].data(), next.arrays[field].data() + next.arrays[field].count());
    state = std::move(next);
  }
  way.backend->close[way.type](stepping);
  results.last = numbers_of(state.arrays);
  return results;
}

// As in tests/comparison.py, relative to a tensor's largest number. What products rounded to bfloat16 make of a recurrence
// has no bound: it only must not be NaN, as it would be from memory that nobody has written.
struct Tolerance {
  double relative, absolute;
};
constexpr Tolerance tolerances[rit::TYPES] = {{1e-4, 1e-5}, {1e-9, 1e-11}, {1e9, 1e9}};

void compare(std::string& said, const std::string& name, const Numbers& found, const Numbers& expected, const Tolerance& tolerance) {
  if (found.size() != expected.size()) {
    said += "; " + name + " has " + std::to_string(found.size()) + " elements, expected " + std::to_string(expected.size());
    return;
  }
  double largest = 1, excess = 0;
  size_t worst = 0;
  for (double value : expected) largest = std::fmax(largest, std::fabs(value));
  for (size_t i = 0; i < found.size(); ++i) {
    const double over = std::fabs(found[i] - expected[i]) - tolerance.absolute * largest - tolerance.relative * std::fabs(expected[i]);
    if (std::isnan(over) ? !std::isnan(excess) : over > excess) {
      excess = over;
      worst = i;
    }
  }
  if (excess == 0) return;
  char text[200];
  std::snprintf(text, sizeof text, "[%zu] is %.9g, expected %.9g", worst, found[worst], expected[worst]);
  said += "; " + name + text;
}

// Calls visit(name, one's array, other's array) for all.
template <class Visit> void for_each_array(const Results& one, const Results& other, Visit visit) {
  const auto fields = [&](const char* name, const std::vector<Numbers>& a, const std::vector<Numbers>& b) {
    for (size_t i = 0; i < a.size() && i < b.size(); ++i) visit(name + std::to_string(i), a[i], b[i]);
  };
  fields("out", one.out, other.out);
  fields("last", one.last, other.last);
  visit("d_x", one.d_x, other.d_x);
  fields("d_entry", one.d_entry, other.d_entry);
  fields("d_blank", one.d_blank, other.d_blank);
  fields("d_parameter", one.d_parameters, other.d_parameters);
}

}  // namespace

Results replay(const Recorded& recorded, const Case& each, const std::vector<Code>& codes, const Way& way) {
  return way.type == rit::FLOAT64 ? run<double>(recorded, each, codes, way) : run<float>(recorded, each, codes, way);
}

Results replay_steps(const Recorded& recorded, const Case& each, const Code& code, const Way& way) {
  return way.type == rit::FLOAT64 ? run_steps<double>(recorded, each, code, way) : run_steps<float>(recorded, each, code, way);
}

int64_t rows_of_x(const rit::ForestLevels& forest) {
  int64_t rows = 0;
  for (const rit::ForestLevel* level = forest.levels; level < forest.levels + forest.count; ++level)
    if (level->x >= 0) rows = std::max(rows, level->x + level->rows);
  return rows;
}

std::string difference(const Results& results, const Case& each, rit::Type type) {
  std::string said;
  const Results expected{each.out, each.last, each.d_x, each.d_entry, each.d_blank, each.d_parameters};
  for_each_array(results, expected, [&](const std::string& name, const Numbers& found, const Numbers& wanted) {
    if (!found.empty() || (wanted.empty() && name != "d_x")) compare(said, name, found, wanted, tolerances[type]);
  });
  return said;
}

std::string other_bits(const Results& one, const Results& other) {
  std::string said;
  for_each_array(one, other, [&](const std::string& name, const Numbers& a, const Numbers& b) {
    if (!a.empty() && !b.empty() && (a.size() != b.size() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) != 0)) said += "; " + name;
  });
  return said;
}
