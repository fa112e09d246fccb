#include "code.h"

#include "backend.h"

#include <algorithm>
#include <stdexcept>

namespace rit {
namespace {

class Reader {
 public:
  explicit Reader(const std::vector<int64_t>& ints) : ints_(ints) {}

  int next(int64_t least, int64_t most) {
    if (at_ >= ints_.size()) throw std::invalid_argument("the code ends early");
    const int64_t value = ints_[at_++];
    if (value < least || value > most)
      throw std::invalid_argument("the code holds " + std::to_string(value) + " at " + std::to_string(at_ - 1) + "; expected " +
                                  std::to_string(least) + " to " + std::to_string(most));
    return static_cast<int>(value);
  }
  int count() { return next(0, 1 << 20); }
  bool done() const { return at_ == ints_.size(); }

 private:
  const std::vector<int64_t>& ints_;
  size_t at_ = 0;
};

constexpr int any = 1 << 28;

// How many elements a row of the space holds.
int room(const Code& code, int space) {
  switch (space) {
    case CONST: return code.const_size;
    case TEMP: return code.temp_size;
    case SCRATCH: return code.scratch_size;
    case FRAME: return code.frame_size;
    case X:
    case DX: return code.input;
    default: return code.sizes[(space - FIRST_FIELD) % code.fields];
  }
}

// Which of the states' spaces it is, of those that there is one of for each field.
enum Field { PREV, OUT, DOUT, CARRY, DPREV, NO_FIELD };

Field field_of(const Code& code, int space) {
  if (space < FIRST_FIELD) return NO_FIELD;
  if (space < code.out(0)) return PREV;
  if (space < code.dout(0)) return OUT;
  if (space < code.carry(0)) return DOUT;
  return space < code.dprev(0, 0) ? CARRY : DPREV;
}

// Whether a routine finds something there.
bool readable(const Code& code, int space, Routine routine) {
  switch (field_of(code, space)) {
    case PREV: return routine != BEFORE;
    case OUT: return true;
    case DOUT:
    case CARRY:
    case DPREV: return routine >= BACK;
    default: return space != DX || routine == AFTER;
  }
}

// Whether a routine may leave something there.
bool writable(const Code& code, int space, Routine routine) {
  switch (field_of(code, space)) {
    case OUT: return routine <= LOOP;
    case DPREV: return routine == BACK;
    case NO_FIELD: return space == TEMP || space == SCRATCH || space == FRAME || (space == DX && routine == AFTER);
    default: return false;
  }
}

// Whether it is there when all is done, for the parameters' gradients.
bool lasting(const Code& code, int space) {
  const Field field = field_of(code, space);
  return field == PREV || field == OUT || field == DOUT || space == FRAME || space == X || space == DX;
}

void expect(bool good, const char* what) {
  if (!good) throw std::invalid_argument(std::string("the code ") + what);
}

Place place(Reader& in, const Code& code, int64_t size) {
  const int space = in.next(0, code.spaces() - 1), offset = in.next(0, any);
  expect(offset + size <= room(code, space), "reads beyond its memory");
  return {space, offset};
}

Place read_from(Reader& in, const Code& code, Routine routine, int64_t size) {
  const Place from = place(in, code, size);
  expect(readable(code, from.space, routine), "reads what is not there");
  return from;
}

Place write_to(Reader& in, const Code& code, Routine routine, int64_t size) {
  const Place to = place(in, code, size);
  expect(writable(code, to.space, routine), "writes where it may not");
  return to;
}

Left left(Reader& in, const Code& code, bool optional = false) {
  const int space = in.next(optional ? -1 : 0, code.spaces() - 1), offset = in.next(0, any), size = in.next(0, any);
  expect(space < 0 || offset + size <= room(code, space), "reads beyond its memory");
  return {space, offset, size};
}

// Elements of an instruction's result and arguments; `extra` is the size of what a reduction or outer product reads.
struct Extents {
  int64_t out, a, b, c;
};

Extents extents(const std::string& name, int64_t size, int64_t extra) {
  const bool outer = name.compare(0, 5, "outer") == 0, reduction = name == "sum" || name == "max";
  expect(extra > 0 || !(outer || reduction), "sums nothing");
  if (reduction) return {1, extra, 0, 0};
  if (name == "expand") return {size, 1, 0, 0};
  if (name == "outer") return {size, (size + extra - 1) / extra, extra, 0};
  if (outer) return {size, size * extra, extra, 0};
  if (name == "uniform") return {size, 0, 0, 0};
  if (name == "where" || name == "mul_add") return {size, size, size, size};
  const bool scalar_first = name.size() > 3 && name.compare(name.size() - 3, 3, ".sv") == 0;
  const bool scalar_second = name.size() > 3 && name.compare(name.size() - 3, 3, ".vs") == 0;
  return {size, scalar_first ? 1 : size, scalar_second ? 1 : size, 0};
}

bool is_unary(int op) {
  static const int unary = [] {
    int count = 0;
#define UNARY(name, result) ++count;
#define BINARY(name, result)
#define TERNARY(name, result)
#define OTHER(name)
#include "ops.def"
#undef UNARY
#undef BINARY
#undef TERNARY
#undef OTHER
    return count;
  }();
  return op < unary;
}

Step read_step(Reader& in, Code& code, Routine routine, int packs) {
  Step step{};
  step.product = in.next(0, 1) == 1;
  if (step.product) {
    step.size = in.next(0, any);
    step.out = write_to(in, code, routine, step.size);
    const Left start = {in.next(-1, code.spaces() - 1), in.next(0, any), step.size};
    expect(start.space < 0 || (readable(code, start.space, routine) && start.offset + start.size <= room(code, start.space)), "starts from what is not there");
    step.start = {start.space, start.offset};
    expect(step.out.space != TEMP && start.space != TEMP, "multiplies what only a few rows have");
    step.pack = in.next(0, packs - 1);
    step.left_count = in.next(1, most_lefts);
    step.lefts = static_cast<int>(code.lefts.size());
    for (int i = 0; i < step.left_count; ++i) {
      code.lefts.push_back(left(in, code));
      const int space = code.lefts.back().space;
      expect(readable(code, space, routine) && space != TEMP, "multiplies what is not there for all rows");
    }
    return step;
  }
  step.first = static_cast<int>(code.instructions.size());
  step.count = in.count();
  const int ops = static_cast<int>(op_names().size());
  for (int i = 0; i < step.count; ++i) {
    Instruction instruction{};
    instruction.op = in.next(0, ops - 1);
    instruction.size = in.next(0, any);
    instruction.extra = in.next(0, any);
    Extents sizes = extents(op_names()[instruction.op], instruction.size, instruction.extra);
    if (is_unary(instruction.op)) sizes.b = 0;
    instruction.out = write_to(in, code, routine, sizes.out);
    instruction.a = read_from(in, code, routine, sizes.a);
    instruction.b = read_from(in, code, routine, sizes.b);
    instruction.c = read_from(in, code, routine, sizes.c);
    code.instructions.push_back(instruction);
  }
  return step;
}

}  // namespace

const std::vector<std::string>& op_names() {
  static const std::vector<std::string> names = {
#define UNARY(name, result) #name,
#define BINARY(name, result)
#define TERNARY(name, result)
#define OTHER(name)
#include "ops.def"
#undef UNARY
#undef BINARY
#undef TERNARY
#undef OTHER
#define UNARY(name, result)
#define BINARY(name, result) #name, #name ".vs", #name ".sv",
#define TERNARY(name, result) #name,
#define OTHER(name) #name,
#include "ops.def"
#undef UNARY
#undef BINARY
#undef TERNARY
#undef OTHER
  };
  return names;
}

static bool same(const Left& one, const Left& other) { return one.space == other.space && one.offset == other.offset && one.size == other.size; }

static void add_reduction(std::vector<GradientSum>& sums, const Reduction& reduction) {
  const auto sum = std::find_if(sums.begin(), sums.end(), [&](const GradientSum& each) { return each.parameter == reduction.parameter && each.matrix == reduction.matrix; });
  GradientSum& to = sum != sums.end() ? *sum : sums.emplace_back(GradientSum{reduction.parameter, reduction.matrix, {}, {}});
  const auto is_left = [&](const GradientSum::Product& each) { return same(each.left, reduction.left) && each.row == reduction.row; };
  auto product = reduction.matrix ? std::find_if(to.products.begin(), to.products.end(), is_left) : to.products.end();
  if (product == to.products.end()) product = to.products.insert(product, {reduction.left, reduction.row, {}});
  if (!reduction.matrix) return;
  const auto right = std::find_if(to.rights.begin(), to.rights.end(), [&](const Left& each) { return same(each, reduction.right); });
  const int number = static_cast<int>(right - to.rights.begin());
  if (right == to.rights.end()) to.rights.push_back(reduction.right);
  product->terms.push_back({number, reduction.column});
}

int64_t frame_stride(const Code& code) {
  const int64_t whole = (code.frame_size + 15) / 16 * 16;
  return whole && whole % 512 == 0 ? whole + 16 : whole;  // off multiples of 2 KB, where rows would fall on the same cache lines
}

Code read_code(const std::vector<int64_t>& ints, const std::vector<double>& constants) {
  Reader in(ints);
  Code code{};
  code.fields = in.next(1, most_fields);
  code.slots = in.next(0, most_slots);
  if (code.spaces() > most_spaces) throw std::invalid_argument("too many fields and predecessors");
  for (int field = 0; field < code.fields; ++field) code.sizes.push_back(in.next(1, any));
  code.input = in.next(1, any);
  code.const_size = in.next(0, any);
  code.temp_size = in.next(0, any);
  code.scratch_size = in.next(0, any);
  code.frame_size = in.next(0, any);
  const int packs = in.count();
  code.parameters = in.count();
  for (int routine = 0; routine < ROUTINES; ++routine) {
    const int steps = in.count();
    for (int i = 0; i < steps; ++i) code.routines[routine].push_back(read_step(in, code, static_cast<Routine>(routine), packs));
  }
  for (int i = 0; i < packs; ++i) {
    Pack pack{in.next(0, any), 0, static_cast<int>(code.parts.size()), in.next(1, 1 << 16)};
    for (int part = 0; part < pack.part_count; ++part) {
      code.parts.push_back({in.next(0, code.parameters - 1), in.next(0, any), in.next(0, any), in.next(0, 1), in.next(0, any)});
      pack.depth += code.parts.back().depth;
    }
    code.packs.push_back(pack);
  }
  const int fills = in.count();
  if (static_cast<size_t>(fills) != constants.size()) throw std::invalid_argument("the code has other constants than its numbers");
  for (int i = 0; i < fills; ++i) {
    const int offset = in.next(0, code.const_size), size = in.next(0, code.const_size - offset);
    code.fills.push_back({offset, size, constants[i]});
  }
  const int vectors = in.count();
  for (int i = 0; i < vectors; ++i) {
    const int offset = in.next(0, code.const_size), size = in.next(0, code.const_size - offset);
    code.vectors.push_back({offset, size, in.next(0, code.parameters - 1)});
  }
  const int reductions = in.count();
  for (int i = 0; i < reductions; ++i) {
    Reduction reduction{in.next(0, code.parameters - 1), in.next(0, any), in.next(0, any), in.next(0, 1) == 1, {}, {}};
    reduction.left = left(in, code);
    reduction.right = left(in, code, true);
    expect(reduction.matrix == (reduction.right.space >= 0), "has a gradient of one side");
    expect(lasting(code, reduction.left.space) && (!reduction.matrix || lasting(code, reduction.right.space)), "has a gradient from what is gone");
    add_reduction(code.sums, reduction);
  }
  if (!in.done()) throw std::invalid_argument("the code goes on after its end");
  for (int routine = 0; routine < ROUTINES; ++routine) {
    code.used[routine].assign(packs, 0);
    for (const Step& step : code.routines[routine]) {
      if (!step.product) continue;
      code.used[routine][step.pack] = 1;
      int depth = 0;
      for (int i = 0; i < step.left_count; ++i) depth += code.lefts[step.lefts + i].size;
      if (depth != code.packs[step.pack].depth || step.size != code.packs[step.pack].size)
        throw std::invalid_argument("a product does not fit its weights");
    }
  }
  code.early.assign(code.fields, 0);
  auto note_early = [&](const Place& to) {
    if (field_of(code, to.space) == OUT) code.early[to.space - code.out(0)] = 1;
  };
  for (const Step& step : code.routines[BEFORE]) {
    if (step.product) note_early(step.out);
    for (int i = 0; i < step.count; ++i) note_early(code.instructions[step.first + i].out);
  }
  for (const Step& step : code.routines[AFTER]) {
    auto is_state = [&](int space) { return space >= FIRST_FIELD; };
    code.after_reads_states |= step.product && is_state(step.start.space);
    for (int i = 0; i < step.left_count; ++i) code.after_reads_states |= is_state(code.lefts[step.lefts + i].space);
    for (int i = 0; i < step.count; ++i) {
      const Instruction& each = code.instructions[step.first + i];
      code.after_reads_states |= is_state(each.a.space) || is_state(each.b.space) || is_state(each.c.space);
    }
  }
  return code;
}

}  // namespace rit
