// The memory that a run works in: taken by type, weights packed into panels, constants filled.
#pragma once
#include <cstring>

#include "backend.h"
#include "machine.h"
#include "memory.h"

namespace rit {
namespace RIT_ISA {

RIT_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
RIT_INLINE int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

// Elements from row to row of a scratch of `size`: off multiples of 4 KB, where rows would fall on the same cache lines.
template <class T> static inline int64_t padded(int64_t size) {
  const int64_t line = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t whole = (size + line - 1) / line * line;
  return whole * static_cast<int64_t>(sizeof(T)) % 2048 == 0 && whole ? whole + line : whole;
}

template <class T> static void bind(Block<T>& block, int space, T* base, int64_t stride) {
  block.base[space] = base;
  block.stride[space] = stride;
}

static inline int deepest(const Code& code) {
  int depth = 1;
  for (const Pack& pack : code.packs) depth = pack.depth > depth ? pack.depth : depth;
  return depth;
}

// Working memory by type.
template <class P> class Room : public Workspace {
 public:
  using T = typename P::T;
  using Unit = typename P::Unit;

  template <class Any> Any* many(int64_t count) { return static_cast<Any*>(take(static_cast<size_t>(greater(count, 1)) * sizeof(Any))); }
  T* numbers(int64_t count) { return many<T>(count); }
  Unit* units(size_t count) { return many<Unit>(static_cast<int64_t>(count) + 1); }

  // What packing a panel of any of a code's weights needs besides.
  T* column(const Code& code) { return numbers(int64_t{deepest(code)} * panel_width<T>()); }

  // What products of so many rows need.
  Unit* product(int64_t rows, const Code& code) { return units(P::multiply_workspace(static_cast<int>(rows), deepest(code))); }

  // Room for the panels of the packs that one of two routines uses; others have none.
  Unit** panels(const Code& code, Routine one, Routine other) {
    Unit** const found = many<Unit*>(static_cast<int64_t>(code.packs.size()));
    for (size_t i = 0; i < code.packs.size(); ++i)
      found[i] = code.used[one][i] || code.used[other][i] ? units(P::packed(code.packs[i].size, code.packs[i].depth)) : nullptr;
    return found;
  }
};

// Whether a product of a routine is worth a team.
template <class P> static bool worth_sharing(const Code& code, Routine routine, int64_t rows) {
  for (size_t i = 0; i < code.packs.size(); ++i)
    if (code.used[routine][i] && Team<P>::is_worth(rows, code.packs[i].size, code.packs[i].depth)) return true;
  return false;
}

// The weights of every pack that has panels, in panels; threads share each. `column` is room for the deepest panel.
template <class P> static void pack_weights(const Call& call, typename P::Unit* const* all_panels, int thread, int threads, typename P::T* column) {
  using T = typename P::T;
  const Code& code = *call.code;
  for (size_t i = 0; i < code.packs.size(); ++i) {
    if (!all_panels[i]) continue;
    const Pack& weights = code.packs[i];
    const int panels = ceil_divide(weights.size, panel_width<T>());
    for (int panel = part_begin(panels, threads, thread); panel < part_begin(panels, threads, thread + 1); ++panel) {
      typename P::Unit* const to = all_panels[i] + static_cast<size_t>(panel) * P::panel(weights.depth);
      T* out = P::panel_memory(to, column);
      for (int k = 0; k < weights.part_count; ++k) {
        const PackPart& part = code.parts[weights.parts + k];
        const int64_t down = call.parameter_strides[2 * part.parameter], across = call.parameter_strides[2 * part.parameter + 1];
        const T* corner = static_cast<const T*>(call.parameters[part.parameter]) + part.row * down + part.column * across;
        const int64_t along = part.back ? across : down, deeper = part.back ? down : across;
        pack_panel(corner + panel * panel_width<T>() * along, along, deeper, smaller(panel_width<T>(), weights.size - panel * panel_width<T>()), part.depth, out);
        out += static_cast<size_t>(part.depth) * panel_width<T>();
      }
      P::finish_panel(column, weights.depth, to);
    }
  }
}

template <class T> static void fill_constants(const Call& call, T* constant) {
  std::memset(constant, 0, sizeof(T) * call.code->const_size);
  for (const Fill& fill : call.code->fills)
    for (int i = 0; i < fill.size; ++i) constant[fill.offset + i] = static_cast<T>(fill.number);
  for (const ConstVector& vector : call.code->vectors) {
    const T* from = static_cast<const T*>(call.parameters[vector.parameter]);
    for (int i = 0; i < vector.size; ++i) constant[vector.offset + i] = from[i * call.parameter_strides[2 * vector.parameter + 1]];
  }
}

}  // namespace RIT_ISA
}  // namespace rit
