// What record.py wrote: a program, what it is asked for, its parameters, and schedules with inputs and expected results.
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

struct LevelInts {
  int64_t entries;
  int slots;
  Integers starts, source, last, owner;

  rit::LevelStore store() const { return rit::LevelStore(entries, starts, source, slots, last, owner); }
};

// Fields come one after the other; a missing gradient is one that is not given, or not wanted.
struct Case {
  std::string name;
  uint64_t seed;
  LevelInts levels;
  std::vector<LevelInts> segments;  // of a checkpointed run, if there can be one
  Numbers x;
  std::vector<Numbers> entry, blank, out, last;
  std::vector<Numbers> d_out, d_last;
  std::vector<bool> d_out_given, d_last_given;
  Numbers d_x;
  std::vector<Numbers> d_entry, d_blank, d_parameters;
};

struct Recorded {
  std::string name;
  Integers ints;
  Numbers constants;
  bool gradients, wants_x;
  int fields;
  std::vector<Parameter> parameters;
  std::vector<Case> cases;
};

Recorded read_recorded(const std::string& path);
