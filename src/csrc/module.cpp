// Binds, and nothing else. Tensors come as addresses; the caller has checked their types and shapes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "code.h"
#include "cpu.h"
#include "levels.h"
#include "memory.h"

namespace nb = nanobind;
using namespace nb::literals;
using Addresses = std::vector<uintptr_t>;
using Integers = std::vector<int64_t>;

namespace {

// Memory that is used again when it is dropped.
struct Memory {
  explicit Memory(size_t bytes) : data(rit::take_memory(bytes)) {}
  Memory(const Memory&) = delete;
  ~Memory() { rit::give_memory(data); }
  void* data;
};

template <class P> P* at(uintptr_t address) { return reinterpret_cast<P*>(address); }
const void* const* inputs(const Addresses& addresses) { return reinterpret_cast<const void* const*>(addresses.data()); }
void* const* outputs(const Addresses& addresses) { return reinterpret_cast<void* const*>(const_cast<uintptr_t*>(addresses.data())); }

rit::Type type_of(const std::string& name) {
  if (name == "float32") return rit::FLOAT32;
  if (name == "float64") return rit::FLOAT64;
  if (name == "bfloat16") return rit::BFLOAT16;
  throw std::invalid_argument("type must be float32, float64 or bfloat16, not " + name);
}

// The whole schedule, or with checkpoints its segments besides.
std::vector<const rit::Levels*> levels_of(const std::vector<const rit::LevelStore*>& segments) {
  std::vector<const rit::Levels*> found;
  for (const rit::LevelStore* segment : segments) found.push_back(&segment->levels());
  return found;
}

// What a run reads and where it writes; nobody but the run keeps the addresses.
rit::Call call_over(int threads, uint64_t seed, uintptr_t x, const Addresses& entry, const Addresses& blank, const Addresses& out) {
  rit::Call call{};
  call.threads = threads;
  call.seed = seed;
  call.x = at<void>(x);
  call.entry = inputs(entry);
  call.blank = inputs(blank);
  call.out = outputs(out);
  return call;
}

// Chains have one predecessor a row, and each kind of a forest's rows has as many as its code says.
void expect_slots(const rit::Code& code, int64_t slots) {
  if (code.slots != slots) throw std::invalid_argument("the code is for rows of " + std::to_string(code.slots) + " predecessors, not of " + std::to_string(slots));
}

void expect_kinds(const rit::ForestStore& forest, const std::vector<const rit::Code*>& codes) {
  if (forest.slots().size() != codes.size()) throw std::invalid_argument("a forest has a code for each kind of its rows");
  for (size_t k = 0; k < codes.size(); ++k) expect_slots(*codes[k], forest.slots()[k]);
}

void give_parameters(rit::Call& call, const rit::Code& code, uintptr_t frame, const Addresses& parameters, const Integers& strides) {
  call.code = &code;
  call.frame = at<void>(frame);
  call.parameters = inputs(parameters);
  call.parameter_strides = strides.data();
}

void give_gradients(rit::Call& call, const Addresses& d_out, const Addresses& d_last, uintptr_t d_x, const Addresses& d_entry, const Addresses& d_blank) {
  call.d_out = inputs(d_out);
  call.d_last = inputs(d_last);
  call.d_x = at<void>(d_x);
  call.d_entry = outputs(d_entry);
  call.d_blank = outputs(d_blank);
}

void give_parameter_gradients(rit::Call& call, const Addresses& d_parameters, const Integers& d_shapes) {
  call.d_parameters = outputs(d_parameters);
  call.d_shapes = d_shapes.data();
}

void forward(const rit::Code& code, const rit::LevelStore& levels, const std::vector<const rit::LevelStore*>& segments, const Addresses& checkpoints, const std::string& type, int threads, uint64_t seed, uintptr_t x, const Addresses& entry,
             const Addresses& blank, const Addresses& out, const Addresses& last, uintptr_t frame, const Addresses& parameters, const Integers& strides) {
  expect_slots(code, 1);
  rit::Call call = call_over(threads, seed, x, entry, blank, out);
  call.levels = &levels.levels();
  call.last = outputs(last);
  call.checkpoints = outputs(checkpoints);
  give_parameters(call, code, frame, parameters, strides);
  const rit::Backend& backend = rit::choose_backend();
  const rit::Type number = type_of(type);
  const std::vector<const rit::Levels*> pieces = levels_of(segments);
  nb::gil_scoped_release release;
  if (pieces.empty()) backend.forward[number](call);
  else backend.forward_checkpointed[number](call, pieces.data(), static_cast<int>(pieces.size()));
}

void backward(const rit::Code& code, const rit::LevelStore& levels, const std::vector<const rit::LevelStore*>& segments, const Addresses& checkpoints, const std::string& type, int threads, uint64_t seed, uintptr_t x, const Addresses& entry,
              const Addresses& blank, const Addresses& out, uintptr_t frame, const Addresses& parameters, const Integers& strides, const Addresses& d_out,
              const Addresses& d_last, uintptr_t d_x, const Addresses& d_entry, const Addresses& d_blank, const Addresses& d_parameters, const Integers& d_shapes) {
  expect_slots(code, 1);
  rit::Call call = call_over(threads, seed, x, entry, blank, out);
  call.levels = &levels.levels();
  call.checkpoints = outputs(checkpoints);
  give_parameters(call, code, frame, parameters, strides);
  give_gradients(call, d_out, d_last, d_x, d_entry, d_blank);
  give_parameter_gradients(call, d_parameters, d_shapes);
  const rit::Backend& backend = rit::choose_backend();
  const rit::Type number = type_of(type);
  const std::vector<const rit::Levels*> pieces = levels_of(segments);
  nb::gil_scoped_release release;
  if (pieces.empty()) backend.backward[number](call);
  else backend.backward_checkpointed[number](call, pieces.data(), static_cast<int>(pieces.size()));
}

void forest_forward(const rit::ForestStore& forest, const std::vector<const rit::Code*>& codes, const std::string& type, int threads, uint64_t seed, uintptr_t x,
                    const Addresses& entry, const Addresses& blank, const Addresses& out, const Addresses& last, const Addresses& frames,
                    const std::vector<Addresses>& parameters, const std::vector<Integers>& strides) {
  expect_kinds(forest, codes);
  std::vector<rit::Call> kinds(codes.size());
  for (size_t k = 0; k < codes.size(); ++k) give_parameters(kinds[k], *codes[k], frames[k], parameters[k], strides[k]);
  rit::ForestCall call{call_over(threads, seed, x, entry, blank, out), &forest.forest(), kinds.data(), static_cast<int>(kinds.size())};
  call.shared.last = outputs(last);
  const rit::Backend& backend = rit::choose_backend();
  const rit::Type number = type_of(type);
  nb::gil_scoped_release release;
  backend.forest_forward[number](call);
}

void forest_backward(const rit::ForestStore& forest, const std::vector<const rit::Code*>& codes, const std::string& type, int threads, uint64_t seed, uintptr_t x,
                     const Addresses& entry, const Addresses& blank, const Addresses& out, const Addresses& frames, const std::vector<Addresses>& parameters,
                     const std::vector<Integers>& strides, const Addresses& d_out, const Addresses& d_last, uintptr_t d_x, const Addresses& d_entry,
                     const Addresses& d_blank, const std::vector<Addresses>& d_parameters, const std::vector<Integers>& d_shapes) {
  expect_kinds(forest, codes);
  std::vector<rit::Call> kinds(codes.size());
  for (size_t k = 0; k < codes.size(); ++k) {
    give_parameters(kinds[k], *codes[k], frames[k], parameters[k], strides[k]);
    give_parameter_gradients(kinds[k], d_parameters[k], d_shapes[k]);
  }
  rit::ForestCall call{call_over(threads, seed, x, entry, blank, out), &forest.forest(), kinds.data(), static_cast<int>(kinds.size())};
  give_gradients(call.shared, d_out, d_last, d_x, d_entry, d_blank);
  const rit::Backend& backend = rit::choose_backend();
  const rit::Type number = type_of(type);
  nb::gil_scoped_release release;
  backend.forest_backward[number](call);
}

// So many integers from an address on.
Integers integers_at(uintptr_t address, int64_t count) { return count > 0 ? Integers(at<int64_t>(address), at<int64_t>(address) + count) : Integers(); }

// One step after the other; the states of two steps lie in memory that the caller owns, and take turns.
class Stepper {
 public:
  Stepper(const rit::Code& code, const std::string& type, int rows, int threads, uint64_t seed, const Addresses& parameters, const Integers& strides,
          const Addresses& first, const Addresses& second)
      : type_(type_of(type)), backend_(rit::choose_backend()), states_{first, second} {
    expect_slots(code, 1);
    rit::Call call{};
    call.code = &code;
    call.threads = threads;
    call.seed = seed;
    call.parameters = inputs(parameters);
    call.parameter_strides = strides.data();
    steps_ = backend_.open[type_](call, rows);
  }
  Stepper(const Stepper&) = delete;
  ~Stepper() { backend_.close[type_](steps_); }

  // From the states of turn `turn` to those of the other.
  void step(uintptr_t x, int turn) { backend_.step[type_](steps_, at<void>(x), inputs(states_[turn]), outputs(states_[1 - turn])); }

 private:
  const rit::Type type_;
  const rit::Backend& backend_;
  const Addresses states_[2];
  rit::Stepping* steps_;
};

}  // namespace

NB_MODULE(_core, m) {
  nb::set_leak_warnings(false);  // caches of codes and levels live as long as the process
  m.doc() = "The compiled engine of the cpu executor.";
  m.def(
      "instruction_sets",
      [] {
        std::vector<std::string> names;
        for (const rit::Backend* backend : rit::backends()) names.emplace_back(backend->name);
        return names;
      },
      "The instruction sets that this processor can run, best last.");
  m.def(
      "instruction_set", [] { return std::string(rit::choose_backend().name); },
      "The one in use: the best, or the one that the environment variable RITORNELLO_ISA names.");
  m.attr("MOST_FIELDS") = rit::most_fields;
  m.attr("MOST_SLOTS") = rit::most_slots;
  m.attr("MOST_SPACES") = rit::most_spaces;
  m.attr("MOST_TERMS") = rit::most_lefts;
  m.def("op_names", &rit::op_names, "The machine's instructions, in the order of their numbers.");
  nb::class_<Memory>(m, "Memory", "Working memory, used again when it is dropped.")
      .def(nb::init<size_t>(), "bytes"_a)
      .def_prop_ro("address", [](const Memory& memory) { return reinterpret_cast<uintptr_t>(memory.data); });
  nb::class_<rit::LevelStore>(m, "Levels", "The levels of chains.")
      .def(nb::init<int64_t, Integers, Integers, Integers>(), "entries"_a, "starts"_a, "source"_a, "last"_a);
  nb::class_<rit::ForestStore>(m, "Forest", "A forest's levels, of rows of several kinds.")
      .def(
          "__init__",
          [](rit::ForestStore* self, int64_t entries, const Integers& levels, uintptr_t source, int64_t sources, uintptr_t last, uintptr_t owner, int64_t rows,
             const Integers& slots) {
            new (self) rit::ForestStore(entries, levels, integers_at(source, sources), integers_at(last, entries), integers_at(owner, rows), slots);
          },
          "entries"_a, "levels"_a, "source"_a, "sources"_a, "last"_a, "owner"_a, "rows"_a, "slots"_a)
      .def("forward", &forest_forward)
      .def("backward", &forest_backward);
  nb::class_<rit::Code>(m, "Code", "A lowered program.")
      .def(
          "__init__", [](rit::Code* self, const Integers& ints, const std::vector<double>& constants) { new (self) rit::Code(rit::read_code(ints, constants)); },
          "ints"_a, "constants"_a)
      .def_prop_ro("frame_stride", [](const rit::Code& code) { return rit::frame_stride(code); })
      .def("forward", &forward)
      .def("backward", &backward);
  nb::class_<Stepper>(m, "Stepper", "One step after the other, with the weights packed once.")
      .def(nb::init<const rit::Code&, const std::string&, int, int, uint64_t, const Addresses&, const Integers&, const Addresses&, const Addresses&>(),
           nb::keep_alive<1, 2>(), "code"_a, "type"_a, "rows"_a, "threads"_a, "seed"_a, "parameters"_a, "strides"_a, "first"_a, "second"_a)
      .def("step", &Stepper::step);
}
