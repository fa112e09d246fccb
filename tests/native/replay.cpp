#include "replay.h"

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

  Parameters(const Recorded& recorded, Layout layout) {
    for (const Parameter& parameter : recorded.parameters) {
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

std::vector<rit::LevelStore> stores_of(const std::vector<LevelInts>& levels) {
  std::vector<rit::LevelStore> found;
  found.reserve(levels.size());  // none is moved: it points into itself
  for (const LevelInts& each : levels) found.push_back(each.store());
  return found;
}

template <class T> Results run(const Recorded& recorded, const Case& each, const Code& code, const rit::LevelStore& store, const Way& way) {
  const rit::Levels& levels = store.levels();
  const Parameters<T> parameters(recorded, way.layout);
  const Exact<T> x = filled<T>(each.x, levels.rows * code.input - way.missing_x);
  const Exact<T> frame(recorded.gradients && !way.checkpointed ? levels.rows * rit::frame_stride(code) : 0);
  const bool keep_all = !way.checkpointed && (recorded.gradients || levels.source || way.keep == ALL);
  const Arrays<T> entry = filled_fields<T>(code, each.entry, levels.entries), blank = filled_fields<T>(code, each.blank, 1);
  const Arrays<T> out = empty_fields<T>(code, levels.rows, keep_all ? most_fields : way.checkpointed || way.keep == FIRST ? 1 : 0);
  const Arrays<T> last = empty_fields<T>(code, levels.entries, most_fields);

  const std::vector<rit::LevelStore> stores = stores_of(way.checkpointed ? each.segments : std::vector<LevelInts>());
  std::vector<const rit::Levels*> segments;
  for (const rit::LevelStore& segment : stores) segments.push_back(&segment.levels());
  const int count = static_cast<int>(segments.size());
  const Arrays<T> checkpoints = empty_fields<T>(code, (count - 1) * levels.entries * way.checkpointed, most_fields);

  Call call{};
  call.code = &code;
  call.levels = &levels;
  call.threads = way.threads;
  call.seed = each.seed;
  call.x = x.data();
  call.entry = entry.inputs();
  call.blank = blank.inputs();
  call.out = out.outputs();
  call.last = last.outputs();
  call.frame = recorded.gradients && !way.checkpointed ? frame.data() : nullptr;
  call.checkpoints = checkpoints.outputs();
  call.parameters = parameters.values.inputs();
  call.parameter_strides = parameters.strides.data();
  if (way.checkpointed) way.backend->forward_checkpointed[way.type](call, segments.data(), count);
  else way.backend->forward[way.type](call);
  Results results{numbers_of(out.arrays), numbers_of(last.arrays), {}, {}, {}, {}};
  if (!recorded.gradients) return results;

  const Arrays<T> d_out = given_fields<T>(code, each.d_out, each.d_out_given, levels.rows);
  const Arrays<T> d_last = given_fields<T>(code, each.d_last, each.d_last_given, levels.entries);
  const Exact<T> d_x(recorded.wants_x ? levels.rows * code.input : 0);
  const Arrays<T> d_entry = empty_fields<T>(code, levels.entries, most_fields);
  const Arrays<T> d_blank = filled_fields<T>(code, {Numbers{0}}, 1);
  Arrays<T> d_parameters;
  for (size_t i = 0; i < recorded.parameters.size(); ++i)
    d_parameters.add(Exact<T>(recorded.parameters[i].rows * recorded.parameters[i].columns), way.all_parameters || i % 2 == 0);
  call.last = nullptr;
  call.d_out = d_out.inputs();
  call.d_last = d_last.inputs();
  call.d_x = recorded.wants_x ? d_x.data() : nullptr;
  call.d_entry = d_entry.outputs();
  call.d_blank = d_blank.outputs();
  call.d_parameters = d_parameters.outputs();
  call.d_shapes = parameters.shapes.data();
  if (way.checkpointed) way.backend->backward_checkpointed[way.type](call, segments.data(), count);
  else way.backend->backward[way.type](call);
  results.d_x = numbers_of(d_x);
  results.d_entry = numbers_of(d_entry.arrays);
  results.d_blank = numbers_of(d_blank.arrays);
  results.d_parameters = numbers_of(d_parameters.arrays);
  return results;
}

template <class T> Results run_steps(const Recorded& recorded, const Case& each, const Code& code, const Way& way) {
  const int64_t rows = each.levels.entries, steps = static_cast<int64_t>(each.levels.starts.size()) - 1;
  const Exact<T> x = filled<T>(each.x, rows * steps * code.input);
  rit::Stepping* stepping;
  {
    const Parameters<T> parameters(recorded, way.layout);  // packed when it opens, then no longer needed
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

Results replay(const Recorded& recorded, const Case& each, const Code& code, const rit::LevelStore& levels, const Way& way) {
  return way.type == rit::FLOAT64 ? run<double>(recorded, each, code, levels, way) : run<float>(recorded, each, code, levels, way);
}

Results replay_steps(const Recorded& recorded, const Case& each, const Code& code, const Way& way) {
  return way.type == rit::FLOAT64 ? run_steps<double>(recorded, each, code, way) : run_steps<float>(recorded, each, code, way);
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
