// What the machine runs, as src/ritornello/program/code.py writes it. A place is a space and an offset in elements.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace rit {

constexpr int most_fields = 16;  // as in src/ritornello/program/code.py, and those that follow
constexpr int most_spaces = 128;
constexpr int most_slots = 16;
constexpr int most_lefts = 64;  // pieces of a product's left side
enum Space { CONST, TEMP, SCRATCH, FRAME, X, DX, FIRST_FIELD };
enum Routine { BEFORE, LOOP, BACK, AFTER, ROUTINES };

struct Place {
  int space, offset;
};

struct Instruction {
  int op, size, extra;
  Place out, a, b, c;
};

struct Left {
  int space, offset, size;
};

// Either a product over the block's rows, or instructions [first, first + count), row by row.
struct Step {
  bool product;
  int first, count;
  int size;
  Place out, start;  // start.space < 0: zero
  int pack;
  int lefts, left_count;  // in Code::lefts
};

struct PackPart {
  int parameter, row, column, back, depth;
};

struct Pack {
  int size, depth, parts, part_count;  // in Code::parts
};

struct Fill {
  int offset, size;
  double number;
};

struct ConstVector {
  int offset, size, parameter;
};

struct Reduction {
  int parameter, row, column;
  bool matrix;
  Left left, right;  // right.space < 0: a sum of left alone
};

// The reductions to one parameter, or to one of its vectors: its sides stand there once.
struct GradientSum {
  struct Term {
    int right, column;  // right: in `rights`
  };
  struct Product {
    Left left;
    int row;
    std::vector<Term> terms;
  };
  int parameter;
  bool matrix;
  std::vector<Left> rights;
  std::vector<Product> products;  // of a vector: its sums
};

struct Code {
  int fields, slots, input, const_size, temp_size, scratch_size, frame_size, parameters;
  std::vector<int> sizes;
  std::vector<Step> routines[ROUTINES];
  std::vector<Instruction> instructions;
  std::vector<Left> lefts;
  std::vector<Pack> packs;
  std::vector<PackPart> parts;
  std::vector<Fill> fills;
  std::vector<ConstVector> vectors;
  std::vector<GradientSum> sums;
  std::vector<char> used[ROUTINES];  // by pack: whether the routine reads it
  bool after_reads_states;           // then AFTER runs level by level
  std::vector<char> early;           // by field: whether BEFORE writes it

  int prev(int field, int slot) const { return FIRST_FIELD + slot * fields + field; }
  int out(int field) const { return FIRST_FIELD + slots * fields + field; }
  int dout(int field) const { return out(field) + fields; }
  int carry(int field) const { return out(field) + 2 * fields; }
  int dprev(int field, int slot) const { return out(0) + 3 * fields + slot * fields + field; }
  int spaces() const { return dprev(0, slots); }
};

// Reads and checks the integers; throws std::invalid_argument where they are no code.
Code read_code(const std::vector<int64_t>& ints, const std::vector<double>& constants);

// The names of all instructions, in the order of their numbers.
const std::vector<std::string>& op_names();

}  // namespace rit
