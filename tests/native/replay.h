// Runs a recorded case in memory with edges.
#pragma once
#include "../../src/csrc/cpu.h"
#include "exact.h"
#include "recorded.h"

// How parameters lie in memory: row by row, column by column, or with gaps everywhere.
enum Layout { ROWS, COLUMNS, GAPS, LAYOUTS };
// Which states a forward run on chains keeps of all rows. Gradients, tables and forests need all.
enum Keep { ALL, FIRST, NONE };

struct Way {
  const rit::Backend* backend;
  rit::Type type;
  int threads;
  Layout layout;  // of the first kind's parameters; each further kind has the next one
  Keep keep = ALL;
  bool all_parameters = true;  // or those with an even number only
  bool checkpointed = false;   // in the case's segments
  int missing_x = 0;           // elements that x is short of, for a run that must fail
};

// As long as what record.py wrote; empty where nothing was asked for.
struct Results {
  std::vector<Numbers> out, last;
  Numbers d_x;
  std::vector<Numbers> d_entry, d_blank, d_parameters;
};

// With the codes given; they and the case's structure may be other than those recorded: then inputs are repeated as often as
// needed.
Results replay(const Recorded& recorded, const Case& each, const std::vector<rit::Code>& codes, const Way& way);

// The case's outputs and final states one step at a time; only on dense chains.
Results replay_steps(const Recorded& recorded, const Case& each, const rit::Code& code, const Way& way);

// How many rows of x a forest's levels reach.
int64_t rows_of_x(const rit::ForestLevels& forest);

// Says where results and expected values differ beyond the tolerance for the type; "" if nowhere.
std::string difference(const Results& results, const Case& each, rit::Type type);
// Says which results have other bits; what one of them lacks is not compared.
std::string other_bits(const Results& one, const Results& other);
