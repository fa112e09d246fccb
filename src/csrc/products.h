// How products are computed: in the type of the rows, or rounded to bfloat16 with sums in float32.
#pragma once
#include "bfloat.h"
#include "gemm.h"

namespace rit {
namespace RIT_ISA {

// Products in the type of the rows. `Unit` is what packed weights and workspaces are made of.
template <class Element> struct Exact {
  using T = Element;
  using Unit = Element;
  static size_t packed(int n, int k) { return packed_size<T>(n, k); }
  static size_t multiply_workspace(int, int) { return 0; }
  static size_t panel(int k) { return static_cast<size_t>(panel_width<T>()) * k; }
  static T* panel_memory(Unit* out, T*) { return out; }
  static void finish_panel(const T*, int, Unit*) {}

  static void multiply(const Segment<T>* segments, int count, int rows, const Unit* panels, int n, const T* start, ptrdiff_t start_stride, T* c,
                       ptrdiff_t c_stride, Unit*) {
    rit::RIT_ISA::multiply(segments, count, rows, panels, n, start, start_stride, c, c_stride);
  }
};

// Rows are float32; both sides of a product are rounded to bfloat16.
struct Rounded {
  using T = float;
  using Unit = Pair;
  static size_t packed(int n, int k) { return packed_pairs(n, k); }
  static size_t multiply_workspace(int rows, int k) { return multiply_pairs_workspace(rows, k); }
  static size_t panel(int k) { return static_cast<size_t>(panel_width<T>()) * ((k + 1) / 2); }
  static T* panel_memory(Unit*, T* column) { return column; }
  static void finish_panel(const T* packed, int k, Unit* out) { to_pairs(packed, k, out); }

  static void multiply(const Segment<T>* segments, int count, int rows, const Unit* panels, int n, const T* start, ptrdiff_t start_stride, T* c,
                       ptrdiff_t c_stride, Unit* workspace) {
    multiply_pairs(segments, count, rows, panels, n, start, start_stride, c, c_stride, workspace);
  }
};

}  // namespace RIT_ISA
}  // namespace rit
