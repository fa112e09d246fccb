// Matrix products over packed panels. R rows, K depth, N columns, W columns of a panel, M rows of a weight gradient.
#pragma once
#include "simd.h"

namespace rit {
namespace RIT_ISA {

constexpr int vectors_per_panel = 2;
#if RIT_VECTOR_BYTES == 64
constexpr int registers = 32, most_rows = 13, outer_rows = 8;
#elif defined(__aarch64__)
constexpr int registers = 32, most_rows = 10, outer_rows = 8;  // GCC loads all values first, and spills with more rows
#else
constexpr int registers = 16, most_rows = 6, outer_rows = 6;
#endif

// Stops the compiler from loading the vector anew for each use.
#if defined(__x86_64__)
#define RIT_KEEP_IN_REGISTER(vector) asm("" : "+v"(vector))
#elif defined(__aarch64__)
#define RIT_KEEP_IN_REGISTER(vector) asm("" : "+w"(vector))
#else
#define RIT_KEEP_IN_REGISTER(vector)
#endif

// What panels are made of: a number, or several of them, of successive depths (bfloat.h).
template <class T> struct Unit {
    using Number = T;
    static constexpr int numbers = 1;
    RIT_INLINE Vector<T> multiply_add(Vector<T> sum, Vector<T> a, Vector<T> b) { return sum + a * b; }
    // `columns` units from the first of row_count rows, for which scratch(columns) units are at hand.
    RIT_INLINE const T* row(const T* const* rows, int /* row_count */, int first, int /* columns */, T* /* scratch */) { return rows[0] + first; }
    static constexpr size_t scratch(int /* columns */) { return 0; }
};

template <class T> using Number = typename Unit<T>::Number;
template <class T> using Sum = Vector<Number<T>>;

template <class T> constexpr int panel_width() { return vectors_per_panel * Simd<T>::lanes; }

RIT_INLINE int ceil_divide(int a, int b) { return (a + b - 1) / b; }
RIT_INLINE int smaller(int a, int b) { return a < b ? a : b; }
// Where part i of `parts` nearly equal parts of `total` begins.
RIT_INLINE int part_begin(int total, int parts, int i) { return static_cast<int>(static_cast<int64_t>(total) * i / parts); }

template <class T> static inline size_t packed_size(int n, int k) {
    return static_cast<size_t>(ceil_divide(n, panel_width<T>())) * panel_width<T>() * k;
}

// Lanes FROM, FROM + 1, ... of a and of b in turn: a0 b0 a1 b1 ...
template <class T, int FROM, int... I> RIT_INLINE Vector<T> interleave(Vector<T> a, Vector<T> b, std::integer_sequence<int, I...>) {
    constexpr int L = Simd<T>::lanes;
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (FROM + I / 2 + I % 2 * L)...);
#else
    return __builtin_shuffle(a, b, typename Simd<T>::Mask{(FROM + I / 2 + I % 2 * L)...});
#endif
}

// A square of L by L elements; each step interleaves its upper with its lower half.
template <class T> RIT_INLINE void transpose(Vector<T> (&square)[Simd<T>::lanes]) {
    constexpr int L = Simd<T>::lanes;
    constexpr std::make_integer_sequence<int, L> lanes{};
    RIT_UNROLL
    for (int step = 1; step < L; step *= 2) {
        Vector<T> next[L];
        RIT_UNROLL
        for (int i = 0; i < L / 2; ++i) {
            next[2 * i] = interleave<T, 0>(square[i], square[i + L / 2], lanes);
            next[2 * i + 1] = interleave<T, L / 2>(square[i], square[i + L / 2], lanes);
        }
        RIT_UNROLL
        for (int i = 0; i < L; ++i) square[i] = next[i];
    }
}

// One panel from rows along which k is contiguous.
template <class T> static inline void pack_along_depth(const T* w, ptrdiff_t row_stride, int columns, int k, T* out) {
    constexpr int L = Simd<T>::lanes, W = panel_width<T>();
    for (int depth = 0; depth < k; depth += L)
        for (int j = 0; j < W; j += L) {
            Vector<T> square[L];
            RIT_UNROLL
            for (int i = 0; i < L; ++i) square[i] = load_columns(w + (j + i) * row_stride + depth, j + i < columns ? k - depth : 0);
            transpose<T>(square);
            T* to = out + static_cast<size_t>(depth) * W + j;
            if (k - depth >= L) {
                RIT_UNROLL
                for (int i = 0; i < L; ++i) store(to + i * W, square[i]);
            } else {
                for (int i = 0; i < k - depth; ++i) store(to + i * W, square[i]);
            }
        }
}

// One panel from rows along which the columns are contiguous.
template <class T> static inline void pack_along_columns(const T* w, ptrdiff_t column_stride, int columns, int k, T* out) {
    constexpr int L = Simd<T>::lanes, W = panel_width<T>();
    for (int depth = 0; depth < k; ++depth)
        for (int j = 0; j < W; j += L) store(out + static_cast<size_t>(depth) * W + j, load_columns(w + depth * column_stride + j, columns - j));
}

template <class T>
static inline void pack_panel(const T* w, ptrdiff_t row_stride, ptrdiff_t column_stride, int columns, int k, T* out) {
    constexpr int W = panel_width<T>();
    if (column_stride == 1) return pack_along_depth(w, row_stride, columns, k, out);
    if (row_stride == 1) return pack_along_columns(w, column_stride, columns, k, out);
    for (int depth = 0; depth < k; ++depth)
        for (int j = 0; j < W; ++j) out[static_cast<size_t>(depth) * W + j] = j < columns ? w[j * row_stride + depth * column_stride] : T(0);
}

// Columns of a left side: row r begins at data + r * stride.
template <class T> struct Segment {
    const T* data;
    ptrdiff_t stride;
    int length;
};

template <class T> struct Product {
    const Segment<T>* segments;
    int count;
    const T* panels;
    size_t panel_step;
    int n;
    const Number<T>* start;
    ptrdiff_t start_stride;
    Number<T>* c;
    ptrdiff_t c_stride;
};

// sum[i][.] += left[i * row_step + k * depth_step] * panel[k][.] for k in [0, depth): one fused multiply-add each, in order.
template <class T, int ROWS, int VECTORS>
RIT_INLINE void add_products(Sum<T> (&sum)[ROWS][VECTORS], const T* left, ptrdiff_t row_step, ptrdiff_t depth_step, const T* panel, size_t panel_step,
                             int depth) {
    constexpr int L = Simd<T>::lanes;
    constexpr bool keep = (ROWS == 2 || ROWS == 3) && VECTORS * (ROWS + 1) < registers;
    const T* base[(ROWS + 2) / 3];  // a pointer for three rows: more would be spilled
    RIT_UNROLL
    for (int i = 0; i < ROWS; i += 3) base[i / 3] = left + i * row_step;
    for (int k = 0; k < depth; ++k, panel += panel_width<T>()) {
        Vector<T> right[VECTORS];
        RIT_UNROLL
        for (int v = 0; v < VECTORS; ++v) {
            right[v] = load(panel + v / vectors_per_panel * panel_step + v % vectors_per_panel * L);
            if constexpr (keep) RIT_KEEP_IN_REGISTER(right[v]);
        }
        RIT_UNROLL
        for (int i = 0; i < ROWS; ++i) {
            const Vector<T> value = broadcast(base[i / 3][i % 3 * row_step]);
            RIT_UNROLL
            for (int v = 0; v < VECTORS; ++v) sum[i][v] = Unit<T>::multiply_add(sum[i][v], value, right[v]);
        }
        RIT_UNROLL
        for (int i = 0; i < ROWS; i += 3) base[i / 3] += depth_step;
    }
}

template <class T, int ROWS, int PANELS> __attribute__((noinline)) static void multiply_tile(const Product<T>& p, int row, int panel) {
    constexpr int L = Simd<T>::lanes, W = panel_width<T>(), VECTORS = PANELS * vectors_per_panel;
    const int columns = p.n - panel * W;
    Sum<T> sum[ROWS][VECTORS];
    const Number<T>* start = p.start ? p.start + row * p.start_stride + panel * W : nullptr;
    RIT_UNROLL
    for (int i = 0; i < ROWS; ++i)
        RIT_UNROLL
        for (int v = 0; v < VECTORS; ++v) sum[i][v] = start ? load_columns(start + i * p.start_stride + v * L, columns - v * L) : Sum<T>{};
    const T* right = p.panels + panel * p.panel_step;
    for (int s = 0; s < p.count; ++s) {
        const Segment<T>& segment = p.segments[s];
        add_products<T>(sum, segment.data + row * segment.stride, segment.stride, 1, right, p.panel_step, segment.length);
        right += static_cast<size_t>(segment.length) * W;
    }
    Number<T>* c = p.c + row * p.c_stride + panel * W;
    RIT_UNROLL
    for (int i = 0; i < ROWS; ++i)
        RIT_UNROLL
        for (int v = 0; v < VECTORS; ++v) store_columns(c + i * p.c_stride + v * L, sum[i][v], columns - v * L);
}

// Few rows take several panels at once: otherwise they wait for their own sums.
constexpr int panels_at_once(int rows) { return rows == 1 ? 4 : rows == 2 ? registers / 8 : rows == 3 ? 2 : 1; }

template <class T, int ROWS> static void multiply_rows(const Product<T>& p, int rows, int row, int panel, int last_panel) {
    if (rows == ROWS) {
        constexpr int step = panels_at_once(ROWS);
        for (; panel + step <= last_panel; panel += step) multiply_tile<T, ROWS, step>(p, row, panel);
        if constexpr (step > 1)
            for (; panel < last_panel; ++panel) multiply_tile<T, ROWS, 1>(p, row, panel);
    } else if constexpr (ROWS > 1) {
        multiply_rows<T, ROWS - 1>(p, rows, row, panel, last_panel);
    }
}

// c[r][j] = start[r][j] + sum over k of left[r][k] * packed(k, j): each element one chain of fused multiply-adds in the order of k.
// start == nullptr: zero; start_stride == 0: one row for all (a bias); start may be c.
template <class T>
static void multiply(const Segment<T>* segments, int count, int rows, const T* panels, int n, const Number<T>* start, ptrdiff_t start_stride, Number<T>* c,
                     ptrdiff_t c_stride) {
    constexpr int W = panel_width<T>();
    size_t depth = 0;
    for (int s = 0; s < count; ++s) depth += segments[s].length;
    const Product<T> product{segments, count, panels, depth * W, n, start, start_stride, c, c_stride};
    const int tiles = ceil_divide(rows, most_rows), last_panel = ceil_divide(n, W);
    constexpr int group = 4;  // panels that stay in the cache while the rows go by
    for (int panel = 0; panel < last_panel; panel += group)
        for (int tile = 0; tile < tiles; ++tile) {
            const int row = part_begin(rows, tiles, tile), end = part_begin(rows, tiles, tile + 1);
            multiply_rows<T, most_rows>(product, end - row, row, panel, smaller(panel + group, last_panel));
        }
}

constexpr int outer_chunk = 512;              // rows of units in one register sum: it alone decides the bits of outer_sum
constexpr int outer_block = 16 * outer_rows;  // columns of the left side packed at once
constexpr int outer_pad = 80;                 // keeps the packed groups off one another's cache sets

template <class T, int WIDTH> constexpr size_t group_step() { return static_cast<size_t>(outer_chunk) * WIDTH + outer_pad; }

constexpr int rows_ahead = 4;  // rows asked for before they are packed: they lie far from one another, and no processor guesses where

template <class N> RIT_INLINE void fetch_row(const N* row, int count) {
    for (int i = 0; i < count; i += 64 / static_cast<int>(sizeof(N))) __builtin_prefetch(row + i);
}

// out[group][row of units][WIDTH]: `count` columns from `first` of each row, in groups of WIDTH, zero padded.
template <class T, int WIDTH> static void pack_rows(const Number<T>* const* rows, int row_count, int first, int count, T* out, T* scratch) {
    constexpr int numbers = Unit<T>::numbers;
    const int whole = count / WIDTH, rest = count % WIDTH;
    for (int r = 0; r < smaller(rows_ahead, row_count); ++r) fetch_row(rows[r] + first, count);
    for (int r = 0; r < ceil_divide(row_count, numbers); ++r) {
        for (int i = rows_ahead; i < rows_ahead + numbers; ++i)
            if (r * numbers + i < row_count) fetch_row(rows[r * numbers + i] + first, count);
        const T* from = Unit<T>::row(rows + r * numbers, row_count - r * numbers, first, count, scratch);
        T* to = out + static_cast<size_t>(r) * WIDTH;
        for (int group = 0; group < whole; ++group, from += WIDTH, to += group_step<T, WIDTH>()) __builtin_memcpy(to, from, WIDTH * sizeof(T));
        if (rest)
            for (int j = 0; j < WIDTH; ++j) to[j] = j < rest ? from[j] : T(0);
    }
}

// Adds to the first m by n elements of c, of a tile of outer_rows by W.
template <class T> static void outer_tile(const T* left, const T* right, int depth, int m, int n, Number<T>* c, ptrdiff_t c_stride) {
    constexpr int L = Simd<T>::lanes;
    m = smaller(m, outer_rows);
    for (int i = 0; i < m; ++i)
        for (int v = 0; v < smaller(vectors_per_panel, ceil_divide(n, L)); ++v) __builtin_prefetch(c + i * c_stride + v * L, 1);
    Sum<T> sum[outer_rows][vectors_per_panel]{};
    add_products<T>(sum, left, 1, outer_rows, right, 0, depth);
    RIT_UNROLL
    for (int i = 0; i < outer_rows; ++i)
        RIT_UNROLL
        for (int v = 0; v < vectors_per_panel; ++v) {
            const int columns = i < m ? n - v * L : 0;
            Number<T>* to = c + i * c_stride + v * L;
            store_columns(to, load_columns<Number<T>>(to, columns) + sum[i][v], columns);
        }
}

// A right side in panels, and where what it adds to a left side goes.
template <class T> struct OuterRight {
    const T* panels;
    int n;
    Number<T>* c;
};

// Units of a right side's panels, and of the rest.
template <class T> static inline size_t outer_right_size(int n) { return ceil_divide(n, panel_width<T>()) * group_step<T, panel_width<T>()>(); }
template <class T> static inline size_t outer_workspace(int n) { return outer_block / outer_rows * group_step<T, outer_rows>() + Unit<T>::scratch(n > outer_block ? n : outer_block); }

// The panels of a right side: of at most outer_chunk rows of units.
template <class T> static void pack_right(const Number<T>* const* rows, int count, int n, T* panels, T* workspace) {
    pack_rows<T, panel_width<T>()>(rows, count, 0, n, panels, workspace + outer_block / outer_rows * group_step<T, outer_rows>());
}

// For each right side: c[m][j] += sum over r of left_rows[r][m] * right_rows[r][j], m in [m_begin, m_end), j in [0, n).
// Threads share the work by ranges of m, each with a workspace of its own.
template <class T>
static void outer_sum(const Number<T>* const* left_rows, int rows, int m_begin, int m_end, const OuterRight<T>* rights, int count, ptrdiff_t c_stride, T* workspace) {
    constexpr int W = panel_width<T>();
    constexpr size_t left_step = group_step<T, outer_rows>();
    const int depth = ceil_divide(rows, Unit<T>::numbers);
    for (int block = m_begin; block < m_end; block += outer_block) {
        const int columns = smaller(outer_block, m_end - block);
        pack_rows<T, outer_rows>(left_rows, rows, block, columns, workspace, workspace + outer_block / outer_rows * left_step);
        for (int side = 0; side < count; ++side)
            for (int j = 0; j < rights[side].n; j += W)
                for (int i = 0; i < columns; i += outer_rows)
                    outer_tile(workspace + i / outer_rows * left_step, rights[side].panels + j / W * group_step<T, W>(), depth, columns - i, rights[side].n - j,
                               rights[side].c + (block + i) * c_stride + j, c_stride);
    }
}

}  // namespace RIT_ISA
}  // namespace rit
