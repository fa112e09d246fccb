// What record.py wrote: programs, what they are asked for, their parameters, and structures with inputs and expected results.
#pragma once
#include <string>
#include <vector>

#include "../../src/csrc/code.h"
#include "../../src/csrc/levels.h"

using Integers = std::vector<int64_t>;
using Numbers = std::vector<double>;

struct Parameter {
  int64_t rows, columns;
  bool matrix;
  Numbers values;
};

struct Program {
  Integers ints;
  Numbers constants;
  std::vector<Parameter> parameters;
};

struct LevelInts {
  int64_t entries;
  Integers starts, source, last;

  rit::LevelStore store() const { return rit::LevelStore(entries, starts, source, last); }
};

struct ForestInts {
  int64_t entries;
  Integers levels, source, last, owner, slots;
  Integers programs;  // of each kind of rows

  rit::ForestStore store() const { return rit::ForestStore(entries, levels, source, last, owner, slots); }
};

// Chains or a forest. Fields come one after the other, and parameters' gradients program by program; a missing gradient is
// one that is not given, or not wanted.
struct Case {
  std::string name;
  uint64_t seed;
  LevelInts levels;
  std::vector<LevelInts> segments;  // of a checkpointed run, if there can be one
  ForestInts forest;
  Numbers x;
  std::vector<Numbers> entry, blank, out, last;
  std::vector<Numbers> d_out, d_last;
  std::vector<bool> d_out_given, d_last_given;
  Numbers d_x;
  std::vector<Numbers> d_entry, d_blank, d_parameters;

  bool has_forest() const { return !forest.programs.empty(); }
};

struct Recorded {
  std::string name;
  bool gradients, wants_x;
  int fields;
  std::vector<Program> programs;
  std::vector<Case> cases;

  std::vector<rit::Code> codes() const;
};

Recorded read_recorded(const std::string& path);
