// Parameters' gradients: sums of products over rows, in a fixed order.
#pragma once
#include "room.h"

namespace rit {
namespace RIT_ISA {

template <class T> static void column_sum(const T* const* rows, int count, int begin, int end, T* to) {
  constexpr int L = Simd<T>::lanes;
  int i = begin;
  for (; i + L <= end; i += L) {
    Vector<T> sum{};
    for (int row = 0; row < count; ++row) sum += load(rows[row] + i);
    store(to + i, load(to + i) + sum);
  }
  for (; i < end; ++i) {
    T sum = 0;
    for (int row = 0; row < count; ++row) sum += rows[row][i];
    to[i] += sum;
  }
}

// What a thread needs to sum up gradients.
template <class P> struct Summing {
  using T = typename P::T;
  using Unit = typename P::Unit;
  static constexpr int chunk = outer_chunk * rit::RIT_ISA::Unit<Unit>::numbers;  // rows

  void take(Room<P>& room, const Code* const* codes, int count) {
    size_t packed = 1, sides = 1, terms = 1;
    int widest = 1;
    for (int k = 0; k < count; ++k)
      for (const GradientSum& sum : codes[k]->sums) {
        size_t units = 0;
        for (const Left& right : sum.rights) {
          units += outer_right_size<Unit>(right.size);
          widest = right.size > widest ? right.size : widest;
        }
        packed = units > packed ? units : packed;
        sides = sum.rights.size() + 1 > sides ? sum.rights.size() + 1 : sides;
        for (const GradientSum::Product& product : sum.products) terms = product.terms.size() > terms ? product.terms.size() : terms;
      }
    panels = room.units(packed);
    workspace = room.units(outer_workspace<Unit>(widest));
    pointers = room.template many<const T*>(static_cast<int64_t>(sides) * chunk);
    rights = room.template many<OuterRight<Unit>>(static_cast<int64_t>(terms));
    packed_at = room.template many<Unit*>(static_cast<int64_t>(sides));
  }

  Unit *panels = nullptr, *workspace = nullptr;
  const T** pointers = nullptr;
  OuterRight<Unit>* rights = nullptr;
  Unit** packed_at = nullptr;  // of each right side
};

// Adds what some rows give to a parameter's gradient; threads share its rows.
// rows_at(side, pointers) says where the rows of a side lie.
template <class P, class RowsAt>
static void add_gradient(const Call& call, const GradientSum& sum, int rows, RowsAt rows_at, const Summing<P>& room, int thread, int threads) {
  using T = typename P::T;
  T* const to = static_cast<T*>(call.d_parameters[sum.parameter]);
  if (!to) return;
  constexpr int step = outer_rows * 2;
  const int columns = static_cast<int>(call.d_shapes[2 * sum.parameter + 1]);
  // Each thread has rows of the parameter, the same in all that is added to it.
  const int64_t height = call.d_shapes[2 * sum.parameter] * (sum.matrix ? 1 : columns);
  const int tiles = static_cast<int>((height + step - 1) / step);
  if (part_begin(tiles, threads, thread) == part_begin(tiles, threads, thread + 1)) return;
  auto from = [&](const GradientSum::Product& product, int part) {
    return static_cast<int>(greater(0, lesser(product.left.size, int64_t{part_begin(tiles, threads, part)} * step - product.row)));
  };
  typename P::Unit* packed = room.panels;
  for (size_t side = 0; side < sum.rights.size(); ++side) {
    rows_at(sum.rights[side], room.pointers);
    pack_right(room.pointers, rows, sum.rights[side].size, packed, room.workspace);
    room.packed_at[side] = packed;
    packed += outer_right_size<typename P::Unit>(sum.rights[side].size);
  }
  for (const GradientSum::Product& product : sum.products) {
    const int begin = from(product, thread), end = from(product, thread + 1);
    if (begin >= end) continue;
    rows_at(product.left, room.pointers);
    if (!sum.matrix) {
      column_sum(room.pointers, rows, begin, end, to + product.row);
      continue;
    }
    int count = 0;
    for (const GradientSum::Term& term : product.terms)
      room.rights[count++] = {room.packed_at[term.right], sum.rights[term.right].size, to + static_cast<int64_t>(product.row) * columns + term.column};
    outer_sum(room.pointers, rows, begin, end, room.rights, count, columns, room.workspace);
  }
}

// Sums up all gradients of a code's parameters in a fixed order, some rows after the others: what is read twice is then at
// hand. rows_at(side, row, rows, pointers) says where so many rows of a side lie, from `row` on.
template <class P, class RowsAt>
static void add_gradients(const Call& call, int64_t all_rows, RowsAt rows_at, const Summing<P>& room, int thread, int threads) {
  for (int64_t row = 0; row < all_rows; row += Summing<P>::chunk) {
    const int rows = static_cast<int>(lesser(Summing<P>::chunk, all_rows - row));
    auto here = [&](const Left& side, const typename P::T** pointers) { rows_at(side, row, rows, pointers); };
    for (const GradientSum& sum : call.code->sums) add_gradient<P>(call, sum, rows, here, room, thread, threads);
  }
}

template <class T> static void clear_gradients(const Call& call, int thread, int threads) {
  for (int p = thread; p < call.code->parameters; p += threads)
    if (call.d_parameters[p]) std::memset(call.d_parameters[p], 0, sizeof(T) * call.d_shapes[2 * p] * call.d_shapes[2 * p + 1]);
}

}  // namespace RIT_ISA
}  // namespace rit
