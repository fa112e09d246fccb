// One step at a time, for as long as it is asked.
#pragma once
#include "room.h"

namespace rit {
namespace RIT_ISA {

// What a stepper keeps: everything but x and the states is bound once.
template <class P> struct Steps {
  using T = typename P::T;
  using Unit = typename P::Unit;

  Steps(const Call& call, int rows) : code(*call.code) {
    panels = room.panels(code, BEFORE, LOOP);
    pack_weights<P>(call, panels, 0, 1, room.column(code));
    block.workspace = room.product(rows, code);
    block.rows = rows;
    block.seed = call.seed;
    bind(block, CONST, room.numbers(code.const_size), 0);
    fill_constants(call, block.base[CONST]);
    bind(block, TEMP, room.numbers(code.temp_size * rows_at_once<T>(code)), code.temp_size);
    bind(block, SCRATCH, room.numbers(padded<T>(code.scratch_size) * rows), padded<T>(code.scratch_size));
    bind(block, FRAME, room.numbers(frame_stride(code) * rows), frame_stride(code));
    block.stride[X] = code.input;
    for (int field = 0; field < code.fields; ++field) block.stride[code.prev(field, 0)] = block.stride[code.out(field)] = code.sizes[field];
    if (call.threads > 1 && (worth_sharing<P>(code, BEFORE, rows) || worth_sharing<P>(code, LOOP, rows))) {
      helpers_workspace = room.product(rows, code);
      team.lead(2);
      block.team = &team;
      helper = new Helper([](void* self) { return static_cast<Steps*>(self)->help(); }, this);
    }
  }

  Steps(const Steps&) = delete;

  ~Steps() { delete helper; }

  bool help() { return team.help_once(1, helpers_workspace); }

  void run(const void* x, const void* const* previous, void* const* out) {
    if (helper) helper->announce();
    block.base[X] = static_cast<T*>(const_cast<void*>(x));
    for (int field = 0; field < code.fields; ++field) {
      block.base[code.prev(field, 0)] = static_cast<T*>(const_cast<void*>(previous[field]));
      block.base[code.out(field)] = static_cast<T*>(out[field]);
    }
    rit::RIT_ISA::run<P>(code, BEFORE, block, panels);
    rit::RIT_ISA::run<P>(code, LOOP, block, panels);
    block.number += block.rows;
  }

  const Code& code;
  Room<P> room;
  Unit** panels = nullptr;
  Block<T> block{};
  Team<P> team;
  Unit* helpers_workspace = nullptr;
  Helper* helper = nullptr;
};

template <class P> static Stepping* open(const Call& call, int rows) { return reinterpret_cast<Stepping*>(new Steps<P>(call, rows)); }

template <class P> static void step(Stepping* steps, const void* x, const void* const* previous, void* const* out) {
  reinterpret_cast<Steps<P>*>(steps)->run(x, previous, out);
}

template <class P> static void close(Stepping* steps) { delete reinterpret_cast<Steps<P>*>(steps); }

}  // namespace RIT_ISA
}  // namespace rit
