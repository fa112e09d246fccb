// The vector machine: element-wise instructions row by row, products over blocks of rows.
// R rows of a block, n elements of a row, L lanes of a vector.
#pragma once
#include "code.h"
#include "math.h"
#include "team.h"
#include "random.h"

namespace rit {
namespace RIT_ISA {

template <class T> RIT_INLINE Vector<T> truth(typename Simd<T>::Mask mask) { return select(mask, Vector<T>{} + 1, Vector<T>{}); }
template <class T> RIT_INLINE Vector<T> absolute(Vector<T> x) { return select(x < 0, -x, select(x == 0, Vector<T>{}, x)); }
template <class T> RIT_INLINE Vector<T> sign(Vector<T> x) { return select(x > 0, Vector<T>{} + 1, select(x < 0, Vector<T>{} - 1, Vector<T>{})); }

// What an instruction is given: rows of numbers and how far it is from one to the next, the size of a result, its own
// number, and who draws at random.
template <class T> struct Operands {
  T* out;
  const T *a, *b, *c;
  ptrdiff_t out_stride, a_stride, b_stride, c_stride;
  int rows, n, extra;
  uint64_t row, seed;
};

// An instruction runs over several rows at a call: with short rows the calls would cost more than the work.
template <class T, class F> RIT_INLINE void for_each_row(Operands<T> o, F compute) {
  for (int row = 0; row < o.rows; ++row) {
    compute(o);
    o.out += o.out_stride;
    o.a += o.a_stride;
    o.b += o.b_stride;
    o.c += o.c_stride;
    ++o.row;
  }
}

template <class T, class F> RIT_INLINE void for_each_vector(int n, T* out, F compute) {
  constexpr int L = Simd<T>::lanes;
  int i = 0;
  for (; i + L <= n; i += L) store(out + i, compute([i](const T* from) { return load(from + i); }));
  if (i < n) store_partial(out + i, compute([i, n](const T* from) { return load_partial(from + i, n - i); }), n - i);
}

#define RIT_ROWS(compute) for_each_row(rows, [](const Operands<T>& o) __attribute__((always_inline)) { compute; })
#define RIT_VECTORS(result) for_each_vector<T>(o.n, o.out, [&](auto at) __attribute__((always_inline)) { result; })

#define UNARY(name, result)                                             \
  template <class T> static void run_##name(const Operands<T>& rows) {  \
    RIT_ROWS(RIT_VECTORS(const Vector<T> x = at(o.a); return result));  \
  }
#define BINARY(name, result)                                                                        \
  template <class T> RIT_INLINE Vector<T> apply_##name(Vector<T> a, Vector<T> b) { return result; } \
  template <class T> static void run_##name(const Operands<T>& rows) {                              \
    RIT_ROWS(RIT_VECTORS(return apply_##name<T>(at(o.a), at(o.b))));                                \
  }                                                                                                 \
  template <class T> static void run_##name##_vs(const Operands<T>& rows) {                         \
    RIT_ROWS(const Vector<T> b = broadcast(*o.b); RIT_VECTORS(return apply_##name<T>(at(o.a), b))); \
  }                                                                                                 \
  template <class T> static void run_##name##_sv(const Operands<T>& rows) {                         \
    RIT_ROWS(const Vector<T> a = broadcast(*o.a); RIT_VECTORS(return apply_##name<T>(a, at(o.b)))); \
  }
#define TERNARY(name, result)                                                                               \
  template <class T> static void run_##name(const Operands<T>& rows) {                                      \
    RIT_ROWS(RIT_VECTORS(const Vector<T> a = at(o.a); const Vector<T> b = at(o.b); const Vector<T> c = at(o.c); return result)); \
  }
#define OTHER(name)
#include "ops.def"
#undef UNARY
#undef BINARY
#undef TERNARY
#undef OTHER

template <class T> RIT_INLINE T total(const T* a, int n) {
  constexpr int L = Simd<T>::lanes;
  Vector<T> first{}, second{};
  int i = 0;
  for (; i + 2 * L <= n; i += 2 * L) {
    first += load(a + i);
    second += load(a + i + L);
  }
  for (; i + L <= n; i += L) first += load(a + i);
  if (i < n) second += load_partial(a + i, n - i);
  return sum_lanes<T>(first + second);
}

template <class T> RIT_INLINE T inner(const T* a, const T* b, int n) {
  constexpr int L = Simd<T>::lanes;
  Vector<T> sum{};
  int i = 0;
  for (; i + L <= n; i += L) sum += load(a + i) * load(b + i);
  if (i < n) sum += load_partial(a + i, n - i) * load_partial(b + i, n - i);
  return sum_lanes<T>(sum);
}

template <class T> static void run_sum(const Operands<T>& rows) {
  RIT_ROWS(*o.out = total(o.a, o.extra));
}

template <class T> RIT_INLINE T largest(const T* a, int n) {
  T most = a[0];
  for (int i = 1; i < n; ++i) most = a[i] > most || a[i] != a[i] ? a[i] : most;
  return most;
}

template <class T> static void run_max(const Operands<T>& rows) {
  RIT_ROWS(*o.out = largest(o.a, o.extra));
}

template <class T> static void run_expand(const Operands<T>& rows) {
  RIT_ROWS(const Vector<T> value = broadcast(*o.a); for_each_vector<T>(o.n, o.out, [&](auto) { return value; }));
}

// a and b to all a[i] * b[j]; extra is the size of b.
template <class T> RIT_INLINE void outer(const Operands<T>& o) {
  for (int i = 0; i < o.n / o.extra; ++i) {
    const Vector<T> value = broadcast(o.a[i]);
    for_each_vector<T>(o.extra, o.out + i * o.extra, [&](auto at) __attribute__((always_inline)) { return value * at(o.b); });
  }
}

template <class T> static void run_outer(const Operands<T>& rows) {
  RIT_ROWS(outer(o));
}

// The matrix a, with rows of extra elements, times the vector b.
template <class T> static void run_outer_right(const Operands<T>& rows) {
  RIT_ROWS(for (int i = 0; i < o.n; ++i) o.out[i] = inner(o.a + static_cast<ptrdiff_t>(i) * o.extra, o.b, o.extra));
}

// The vector b of extra elements times the matrix a.
template <class T> static void run_outer_left(const Operands<T>& rows) {
  RIT_ROWS(RIT_VECTORS(Vector<T> sum{}; for (int i = 0; i < o.extra; ++i) sum += broadcast(o.b[i]) * at(o.a + static_cast<ptrdiff_t>(i) * o.n); return sum));
}

template <class T> static void run_uniform(const Operands<T>& rows) {
  RIT_ROWS(uniform(o.out, o.n, o.seed, o.row, o.extra));
}

template <class T> using Run = void (*)(const Operands<T>&);

template <class T> static const Run<T>* instructions() {
  static constexpr Run<T> table[] = {
#define UNARY(name, result) run_##name<T>,
#define BINARY(name, result)
#define TERNARY(name, result)
#define OTHER(name)
#include "ops.def"
#undef UNARY
#undef BINARY
#undef TERNARY
#undef OTHER
#define UNARY(name, result)
#define BINARY(name, result) run_##name<T>, run_##name##_vs<T>, run_##name##_sv<T>,
#define TERNARY(name, result) run_##name<T>,
#define OTHER(name) run_##name<T>,
#include "ops.def"
#undef UNARY
#undef BINARY
#undef TERNARY
#undef OTHER
  };
  return table;
}

// Rows to run a routine over: where the first one lies in each space, and how far it is to the next.
template <class T> struct Block {
  T* base[most_spaces];
  ptrdiff_t stride[most_spaces];
  int rows;
  int64_t first_row;
  int64_t number;  // of the first row among all rows: what it draws at random hangs on it
  uint64_t seed;
  void* workspace;  // of the products
  void* team;       // those who share them, or null
};

// Rows that instructions take at a call: as many as leave their intermediate values in the first cache.
template <class T> static inline int rows_at_once(const Code& code) {
  constexpr int room = 8192 / sizeof(T), most = 16;
  const int fitting = room / (code.temp_size + 1);
  return fitting < 1 ? 1 : fitting > most ? most : fitting;
}

template <class T> static void run_instructions(const Code& code, const Step& step, const Block<T>& block) {
  const Run<T>* const table = instructions<T>();
  const Instruction* const first = code.instructions.data() + step.first;
  const int spaces = code.spaces(), group = rows_at_once<T>(code);
  const ptrdiff_t* const stride = block.stride;
  T* at[most_spaces];
  for (int space = 0; space < spaces; ++space) at[space] = block.base[space];
  for (int row = 0; row < block.rows; row += group) {
    const int rows = smaller(group, block.rows - row);
    const uint64_t number = static_cast<uint64_t>(block.number + row);
    for (const Instruction* i = first; i < first + step.count; ++i)
      table[i->op]({at[i->out.space] + i->out.offset, at[i->a.space] + i->a.offset, at[i->b.space] + i->b.offset, at[i->c.space] + i->c.offset,
                    stride[i->out.space], stride[i->a.space], stride[i->b.space], stride[i->c.space], rows, i->size, i->extra, number, block.seed});
    for (int space = 0; space < spaces; ++space)
      if (space != TEMP) at[space] += group * stride[space];
  }
}

template <class P> static void run_product(const Code& code, const Step& step, const Block<typename P::T>& block, const typename P::Unit* panels) {
  using T = typename P::T;
  Segment<T> segments[most_lefts];
  const T* start = step.start.space < 0 ? nullptr : block.base[step.start.space] + step.start.offset;
  ptrdiff_t start_stride = step.start.space < 0 ? 0 : block.stride[step.start.space];
  T* const out = block.base[step.out.space] + step.out.offset;
  const ptrdiff_t out_stride = block.stride[step.out.space];
  const Left* const lefts = code.lefts.data() + step.lefts;
  for (int i = 0; i < step.left_count; ++i)
    segments[i] = {block.base[lefts[i].space] + lefts[i].offset, block.stride[lefts[i].space], lefts[i].size};
  const auto workspace = static_cast<typename P::Unit*>(block.workspace);
  const int depth = code.packs[step.pack].depth;
  if (block.team && Team<P>::is_worth(block.rows, step.size, depth))
    static_cast<Team<P>*>(block.team)->multiply({segments, step.left_count, block.rows, panels, step.size, depth, start, start_stride, out, out_stride}, workspace);
  else P::multiply(segments, step.left_count, block.rows, panels, step.size, start, start_stride, out, out_stride, workspace);
}

// panels: where each pack's weights lie.
template <class P> static void run(const Code& code, Routine routine, const Block<typename P::T>& block, typename P::Unit* const* panels) {
  if (block.rows == 0) return;
  for (const Step& step : code.routines[routine]) {
    if (step.product) run_product<P>(code, step, block, panels[step.pack]);
    else run_instructions(code, step, block);
  }
}

}  // namespace RIT_ISA
}  // namespace rit
