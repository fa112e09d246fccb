// What the engine, compiled for one instruction set, offers to the rest. Included by all, so: no inline functions.
// E entries (sequences), N rows, L levels, F fields of the state, P parameters.
#pragma once
#include <cstddef>
#include <cstdint>

namespace rit {

struct Code;

// The levels of chains. Level l has the rows starts[l] to starts[l + 1]; row j of a level is entry j's.
struct Levels {
  int64_t entries, rows, count;
  const int64_t* starts;  // L + 1
  const int64_t* source;  // N rows of the table of states; null where row j of a level follows row j of the one before
  const int64_t* last;    // E table rows of final states, with `source`
};

// One run. Arrays of numbers are of the type that the program runs in; a null pointer is "not given" or "not wanted".
struct Call {
  const Code* code;
  const Levels* levels;
  int threads;
  uint64_t seed;
  int64_t first_row;                 // number of row 0: what is drawn at random hangs on it
  bool accumulate;                   // parameters' gradients are added to what is there
  const void* x;                     // (N, input)
  const void* const* entry;          // F of (E, size)
  const void* const* blank;          // F of (size)
  void* const* out;                  // F of (N, size)
  void* const* last;                 // F of (E, size)
  void* frame;                       // (N, frame_stride)
  const void* const* parameters;     // P
  const int64_t* parameter_strides;  // (P, 2): from row to row and from column to column, in elements
  const void* const* d_out;          // F of (N, size)
  const void* const* d_last;         // F of (E, size)
  void* d_x;                         // (N, input)
  void* const* d_entry;              // F of (E, size)
  void* const* d_blank;              // F of (size)
  void* const* d_parameters;         // P, contiguous
  void* const* checkpoints;          // F of (segments - 1, E, size)
  const int64_t* d_shapes;           // (P, 2): rows and columns of each
};

// A forest's levels, from the leaves up: rows of one height and one kind. A kind has code of its own: for so many
// predecessors (none, where leaves read no state), with an input or without.
struct ForestLevel {
  int64_t start, rows;  // in the forest's order
  int64_t source;       // where the level's (rows, slots) table rows begin
  int64_t first;        // number of its first row among the rows of its kind
  int64_t x;            // row of x that belongs to its first row; -1 where rows have none
  int64_t kind;
};

struct ForestLevels {
  int64_t entries, rows, count;
  const ForestLevel* levels;
  const int64_t* source;
  const int64_t* last;   // E table rows of final states
  const int64_t* owner;  // N entries that rows belong to, ascending in a level
};

// One run over a forest: what all kinds share stands in `shared`, whose code is not read; in `kinds` each one's code,
// parameters, frames and parameters' gradients.
struct ForestCall {
  Call shared;
  const ForestLevels* forest;
  const Call* kinds;
  int kind_count;
};

enum Type { FLOAT32, FLOAT64, BFLOAT16, TYPES };  // BFLOAT16: rows are float32, products rounded to bfloat16

// One step at a time of a few rows, with the weights packed once.
struct Stepping;

struct Backend {
  const char* name;  // of the instruction set, as in RITORNELLO_ISA
  int vector_bytes;
  void (*forward[TYPES])(const Call&);
  void (*backward[TYPES])(const Call&);
  void (*forward_checkpointed[TYPES])(const Call&, const Levels* const* segments, int count);
  void (*backward_checkpointed[TYPES])(const Call&, const Levels* const* segments, int count);
  void (*forest_forward[TYPES])(const ForestCall&);
  void (*forest_backward[TYPES])(const ForestCall&);
  Stepping* (*open[TYPES])(const Call&, int rows);  // keeps nothing of the call but its code
  void (*step[TYPES])(Stepping*, const void* x, const void* const* previous, void* const* out);
  void (*close[TYPES])(Stepping*);
};

// Elements from one row's frame to the next one's.
int64_t frame_stride(const Code& code);

}  // namespace rit
