// The checkpointed adjoint: levels in segments, of which backward computes each anew from the state it began with.
#pragma once
#include "engine.h"

namespace rit {
namespace RIT_ISA {

// The parts of a call that belong to levels from row `row` on.
template <class T> struct Piece {
  explicit Piece(const Call& whole, const Levels* levels, int64_t row, void* const* outs) : call(whole) {
    const Code& code = *whole.code;
    call.levels = levels;
    call.x = moved(whole.x, row * code.input);
    call.d_x = moved(whole.d_x, row * code.input);
    for (int field = 0; field < code.fields; ++field) {
      out[field] = outs && outs[field] ? outs[field] : moved(whole.out[field], row * code.sizes[field]);
      d_out[field] = whole.d_out ? moved(whole.d_out[field], row * code.sizes[field]) : nullptr;
    }
    call.out = out;
    call.d_out = d_out;
  }
  static const void* moved(const void* from, int64_t elements) { return from ? static_cast<const T*>(from) + elements : nullptr; }
  static void* moved(void* from, int64_t elements) { return from ? static_cast<T*>(from) + elements : nullptr; }

  Call call;
  void* out[most_fields];
  const void* d_out[most_fields];
};

// Where field `field`'s states lie at the end of segment `segment` (of all but the last).
template <class T> static T* checkpoint(const Call& call, int field, int64_t segment) {
  return static_cast<T*>(call.checkpoints[field]) + segment * call.levels->entries * call.code->sizes[field];
}

// Runs a new engine. The first of all lends its weights to the others, and lives as long as its owner, whatever is thrown.
template <class P> struct Lender {
  Engine<P>* first = nullptr;

  Lender() = default;
  Lender(const Lender&) = delete;
  ~Lender() { delete first; }

  void run(const Call& call, bool backward) {
    if (first) {
      Engine<P>(call, backward, first).run();
    } else {
      first = new Engine<P>(call, backward, nullptr);
      first->run();
    }
  }
};

template <class P> static void forward_checkpointed(const Call& call, const Levels* const* segments, int count) {
  using T = typename P::T;
  const void* entry[most_fields];
  void* last[most_fields];
  Lender<P> engines;
  Room<P> room;
  void* outs[most_fields] = {};  // tables want all states of a segment; chains pass them on
  int64_t row = 0, most = 0;
  for (int segment = 0; segment < count; ++segment) most = greater(most, segments[segment]->rows);
  for (int field = 0; field < call.code->fields && segments[0]->source; ++field)
    if (!call.out[field]) outs[field] = room.numbers(most * call.code->sizes[field]);
  for (int segment = 0; segment < count; ++segment) {
    Piece<T> piece(call, segments[segment], row, outs);
    for (int field = 0; field < call.code->fields; ++field) {
      entry[field] = segment ? checkpoint<T>(call, field, segment - 1) : call.entry[field];
      last[field] = segment + 1 < count ? checkpoint<T>(call, field, segment) : call.last[field];
    }
    piece.call.entry = entry;
    piece.call.last = last;
    piece.call.first_row = row;
    engines.run(piece.call, false);
    row += segments[segment]->rows;
  }
}

template <class P> static void backward_checkpointed(const Call& call, const Levels* const* segments, int count) {
  using T = typename P::T;
  const Code& code = *call.code;
  const int64_t entries = call.levels->entries;
  Room<P> room;
  int64_t most = 0, row = 0;
  for (int segment = 0; segment < count; ++segment) {
    most = greater(most, segments[segment]->rows);
    row += segments[segment]->rows;
  }
  void *outs[most_fields], *lasts[most_fields], *blanks[most_fields], *flow[2][most_fields];
  const void *entry[most_fields], *come[most_fields];
  for (int field = 0; field < code.fields; ++field) {
    const int64_t size = code.sizes[field];
    outs[field] = room.numbers(most * size);
    lasts[field] = room.numbers(entries * size);
    blanks[field] = room.numbers(size);
    flow[0][field] = room.numbers(entries * size);
    flow[1][field] = room.numbers(entries * size);
  }
  void* const frame = room.numbers(most * frame_stride(code));
  Lender<P> forth, back;
  for (int segment = count - 1; segment >= 0; --segment) {
    row -= segments[segment]->rows;
    Piece<T> piece(call, segments[segment], row, outs);
    for (int field = 0; field < code.fields; ++field) {
      entry[field] = segment ? checkpoint<T>(call, field, segment - 1) : call.entry[field];
      come[field] = segment + 1 < count ? flow[(segment + 1) % 2][field] : call.d_last[field];
    }
    piece.call.entry = entry;
    piece.call.last = lasts;
    piece.call.frame = frame;
    piece.call.first_row = row;
    piece.call.d_last = come;
    piece.call.d_entry = segment ? flow[segment % 2] : call.d_entry;
    piece.call.d_blank = blanks;
    piece.call.accumulate = segment + 1 < count;
    forth.run(piece.call, false);
    back.run(piece.call, true);
    for (int field = 0; field < code.fields && segments[segment]->source; ++field)
      for (int64_t i = 0; i < code.sizes[field]; ++i) static_cast<T*>(call.d_blank[field])[i] += static_cast<T*>(blanks[field])[i];
  }
}

}  // namespace RIT_ISA
}  // namespace rit
