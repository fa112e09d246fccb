// Walks the levels. Each thread takes its own entries through all levels, with no barrier between them; parameters'
// gradients come at the end, summed over rows in a fixed order, so that the number of threads changes no bit.
#pragma once
#include <cstring>

#include "backend.h"
#include "machine.h"
#include "memory.h"
#include "pool.h"
#include "table.h"

namespace rit {
namespace RIT_ISA {

constexpr int few_rows = 6;      // rows of a level per thread below which what needs no state runs over many levels at once
constexpr int chunk_rows = 64;   // rows of a block where they are not bound to a level

RIT_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
RIT_INLINE int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

// Elements from row to row of a scratch of `size`: off multiples of 4 KB, where rows would fall on the same cache lines.
template <class T> static inline int64_t padded(int64_t size) {
  const int64_t line = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t whole = (size + line - 1) / line * line;
  return whole * static_cast<int64_t>(sizeof(T)) % 2048 == 0 && whole ? whole + line : whole;
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

// Whether a product of a routine is worth a team.
template <class P> static bool worth_sharing(const Code& code, Routine routine, int64_t rows) {
  for (size_t i = 0; i < code.packs.size(); ++i)
    if (code.used[routine][i] && Team<P>::is_worth(rows, code.packs[i].size, code.packs[i].depth)) return true;
  return false;
}

static inline int deepest(const Code& code) {
  int depth = 1;
  for (const Pack& pack : code.packs) depth = pack.depth > depth ? pack.depth : depth;
  return depth;
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

  void take(Workspace& space, const Code* const* codes, int count) {
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
    panels = static_cast<Unit*>(space.take((packed + 1) * sizeof(Unit)));
    workspace = static_cast<Unit*>(space.take((outer_workspace<Unit>(widest) + 1) * sizeof(Unit)));
    pointers = static_cast<const T**>(space.take(sizeof(T*) * sides * chunk));
    rights = static_cast<OuterRight<Unit>*>(space.take(sizeof(OuterRight<Unit>) * terms));
    packed_at = static_cast<Unit**>(space.take(sizeof(Unit*) * sides));
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

// The memory that one thread works in, for rows of its own entries.
template <class T> struct Lane {
  int64_t begin, end;  // entries
  T *temp, *scratch, *frame;
  void* work;          // of the products
  T* ring[2 * most_fields];      // by field: states of two levels, where not all are kept
  T* gathered[2 * most_fields];  // predecessors' states by field, then gradients to them
  T* carry[2 * most_fields];     // by field: gradients that come, gradients that go
};

// Contiguous entries for each lane, with about as many rows.
template <class AnyLane, class RowsOf> static void share_entries(AnyLane* lane, int lanes, int64_t entries, int64_t all_rows, RowsOf rows_of) {
  int64_t entry = 0, rows = 0;
  for (int number = 0; number < lanes; ++number) {
    const int64_t goal = all_rows * (number + 1) / lanes;
    lane[number].begin = entry;
    for (; entry < entries && (rows < goal || number == lanes - 1); ++entry) rows += rows_of(entry);
    lane[number].end = entry;
  }
}

template <class P> class Engine {
  using T = typename P::T;
  using Unit = typename P::Unit;

 public:
  // With a donor, an engine of the same code and direction that has run: its packed weights are used again.
  Engine(const Call& call, bool backward, const Engine* donor = nullptr)
      : call_(call), code_(*call.code), levels_(*call.levels), backward_(backward), donor_(donor) {
    prepare();
  }

  void run() {
    on_threads(
        threads_, [](void* self, int thread, int threads) { static_cast<Engine*>(self)->work(thread, threads); }, this);
  }

 private:
  bool chain() const { return !levels_.source; }
  int64_t size(int field) const { return code_.sizes[field]; }
  int64_t level_rows(int64_t level) const { return level < levels_.count ? levels_.starts[level + 1] - levels_.starts[level] : 0; }
  T* take(int64_t elements) { return static_cast<T*>(space_.take(static_cast<size_t>(greater(elements, 1)) * sizeof(T))); }
  Unit* units(size_t count) { return static_cast<Unit*>(space_.take((count + 1) * sizeof(Unit))); }

  // --- what is set up before the threads start

  void prepare() {
    table_.bind(call_, code_, levels_.entries, levels_.rows);
    threads_ = static_cast<int>(greater(1, lesser(call_.threads, most_threads)));
    scratch_stride_ = padded<T>(code_.scratch_size);
    frame_stride_ = frame_stride(code_);
    for (int64_t level = 0; level < levels_.count; ++level) most_rows_ = greater(most_rows_, level_rows(level));
    const double mean = levels_.count ? static_cast<double>(levels_.rows) / levels_.count : 0;
    const int64_t worthwhile = loop_multiplies() ? static_cast<int64_t>(mean) / 4 : static_cast<int64_t>(mean);  // rows of products are shared better
    lanes_ = static_cast<int>(greater(1, lesser(threads_, lesser(levels_.entries, worthwhile))));
    in_bulk_ = mean < few_rows * lanes_;
    constant_ = donor_ ? donor_->constant_ : take(code_.const_size);
    panels_ = donor_ ? donor_->panels_ : pack_memory();
    lane_ = static_cast<Lane<T>*>(space_.take(sizeof(Lane<T>) * lanes_));
    share_entries();
    for (int lane = 0; lane < lanes_; ++lane) lane_memory(lane_[lane]);
    if (backward_) gradient_memory();
    else if (!call_.frame && in_bulk_) all_frames_ = take(levels_.rows * frame_stride_);
    for (int thread = 0; thread < threads_; ++thread) {
      bulk_temp_[thread] = take(code_.temp_size * rows_at_once<T>(code_));
      bulk_scratch_[thread] = take(scratch_stride_ * chunk_rows);
      bulk_work_[thread] = units(P::multiply_workspace(chunk_rows, deepest(code_)));
    }
  }

  bool loop_multiplies() const {
    for (const char used : code_.used[backward_ ? BACK : LOOP])
      if (used) return true;
    return false;
  }

  Unit** pack_memory() {
    Unit** panels = static_cast<Unit**>(space_.take(sizeof(Unit*) * greater(1, code_.packs.size())));
    for (size_t i = 0; i < code_.packs.size(); ++i) panels[i] = wanted(i) ? units(P::packed(code_.packs[i].size, code_.packs[i].depth)) : nullptr;
    for (int thread = 0; thread < threads_; ++thread) column_[thread] = take(static_cast<int64_t>(deepest(code_)) * panel_width<T>());
    return panels;
  }

  bool wanted(size_t pack) const {
    return backward_ ? code_.used[BACK][pack] || code_.used[AFTER][pack] : code_.used[BEFORE][pack] || code_.used[LOOP][pack];
  }

  void share_entries() {
    rit::RIT_ISA::share_entries(lane_, lanes_, levels_.entries, levels_.rows, [&](int64_t entry) { return reach(entry); });
  }

  // How many levels have a row of an entry; levels shrink.
  int64_t reach(int64_t entry) const {
    int64_t low = 0, high = levels_.count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (level_rows(middle) > entry) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  void lane_memory(Lane<T>& lane) {
    const int64_t rows = lesser(most_rows_, lane.end - lane.begin);
    lane.temp = take(code_.temp_size * rows_at_once<T>(code_));
    lane.scratch = take(scratch_stride_ * rows);
    lane.work = units(P::multiply_workspace(static_cast<int>(rows), deepest(code_)));
    lane.frame = backward_ || call_.frame || in_bulk_ ? nullptr : take(frame_stride_ * rows);
    for (int field = 0; field < code_.fields; ++field) {
      for (int turn = 0; turn < 2; ++turn) {
        lane.ring[2 * field + turn] = call_.out[field] ? nullptr : take(rows * size(field));
        lane.carry[2 * field + turn] = backward_ && chain() ? take((lane.end - lane.begin) * size(field)) : nullptr;
      }
      lane.gathered[field] = chain() ? nullptr : take(rows * size(field));
      lane.gathered[most_fields + field] = chain() || !backward_ ? nullptr : take(rows * size(field));
    }
  }

  void gradient_memory() {
    if (!chain()) table_.take_gradients(space_);
    const Code* const code = &code_;
    for (int thread = 0; thread < threads_; ++thread) summing_[thread].take(space_, &code, 1);
  }

  // --- what the threads do

  void work(int thread, int threads) {
    if (!donor_) {
      pack_weights(thread, threads);
      if (thread == 0) constants();
      barrier_.wait(threads);
    }
    if (!backward_) {
      if (in_bulk_) {
        bulk(BEFORE, thread, threads);
        barrier_.wait(threads);
      }
      share(thread, threads);
      return;
    }
    if (!call_.accumulate) clear_gradients<T>(call_, thread, threads);
    share(thread, threads);
    barrier_.wait(threads);
    if (after_in_bulk()) {
      bulk(AFTER, thread, threads);
      barrier_.wait(threads);
    }
    reduce(thread, threads);
    if (!chain() && thread == 0) table_.write_gradients();
  }

  // The lanes, one after the other; where there is one only, the other threads help with its products.
  void share(int thread, int threads) {
    const bool together = lanes_ == 1 && threads > 1 && most_rows_ <= chunk_rows && worth_sharing<P>(code_, backward_ ? BACK : LOOP, most_rows_);
    if (together && thread > 0) {
      if (thread < Team<P>::most) team_.help(thread, bulk_work_[thread]);
      return;
    }
    if (together) team_.lead(threads);
    for (int lane = thread; lane < lanes_; lane += threads) {
      Block<T> b = block(lane_[lane].temp, lane_[lane].scratch, lane_[lane].work);
      b.team = together ? &team_ : nullptr;
      if (backward_) backward(lane_[lane], b);
      else forward(lane_[lane], b);
    }
    if (together) team_.finish();
  }

  bool after_in_bulk() const { return !code_.routines[AFTER].empty() && in_bulk_ && !code_.after_reads_states; }

  void pack_weights(int thread, int threads) { rit::RIT_ISA::pack_weights<P>(call_, panels_, thread, threads, column_[thread]); }
  void constants() { fill_constants(call_, constant_); }

  Block<T> block(T* temp, T* scratch, void* work) const {
    Block<T> b{};
    b.workspace = work;
    b.seed = call_.seed;
    b.base[CONST] = constant_;
    b.base[TEMP] = temp;
    b.stride[TEMP] = code_.temp_size;
    b.base[SCRATCH] = scratch;
    b.stride[SCRATCH] = scratch_stride_;
    return b;
  }

  // The spaces that any rows have, wherever their states are.
  void bind_rows(Block<T>& b, int64_t row, int64_t rows, T* local_frame) const {
    b.rows = static_cast<int>(rows);
    b.first_row = row;
    b.number = call_.first_row + row;
    bind(b, X, static_cast<T*>(const_cast<void*>(call_.x)) + row * code_.input, code_.input);
    if (call_.d_x) bind(b, DX, static_cast<T*>(call_.d_x) + row * code_.input, code_.input);
    T* frames = call_.frame ? static_cast<T*>(call_.frame) : all_frames_;
    bind(b, FRAME, frames ? frames + row * frame_stride_ : local_frame, frame_stride_);
  }

  static void bind(Block<T>& b, int space, T* base, int64_t stride) {
    b.base[space] = base;
    b.stride[space] = stride;
  }

  void bulk(Routine routine, int thread, int threads) {
    Block<T> b = block(bulk_temp_[thread], bulk_scratch_[thread], bulk_work_[thread]);
    const int64_t chunks = (levels_.rows + chunk_rows - 1) / chunk_rows;
    for (int64_t chunk = chunks * thread / threads; chunk < chunks * (thread + 1) / threads; ++chunk) {
      const int64_t row = chunk * chunk_rows;
      bind_rows(b, row, lesser(chunk_rows, levels_.rows - row), nullptr);
      rit::RIT_ISA::run<P>(code_, routine, b, panels_);
    }
  }

  // The rows of a level that belong to a lane, counted within the level.
  void rows_of_lane(const Lane<T>& lane, int64_t level, int64_t& first, int64_t& end) const {
    first = lesser(lane.begin, level_rows(level));
    end = lesser(lane.end, level_rows(level));
  }

  void bind_previous(Block<T>& b, const Lane<T>& lane, int64_t level, int64_t first) const {
    for (int field = 0; field < code_.fields; ++field) {
      const int64_t width = size(field);
      const int space = code_.prev(field, 0);
      if (!chain()) {
        table_.gather(field, levels_.source + b.first_row, 1, b.rows, lane.gathered[field]);
        bind(b, space, lane.gathered[field], width);
      } else if (level == 0) {
        bind(b, space, table_.state(field, 1 + first), width);
      } else if (call_.out[field]) {
        bind(b, space, table_.state(field, 1 + levels_.entries + levels_.starts[level - 1] + first), width);
      } else {
        bind(b, space, lane.ring[2 * field + (level - 1) % 2], width);
      }
    }
  }

  void bind_states(Block<T>& b, const Lane<T>& lane, int64_t level, int64_t first) const {
    bind_previous(b, lane, level, first);
    for (int field = 0; field < code_.fields; ++field) {
      T* kept = static_cast<T*>(call_.out[field]);
      bind(b, code_.out(field), kept ? kept + b.first_row * size(field) : lane.ring[2 * field + level % 2], size(field));
    }
  }

  void forward(Lane<T>& lane, Block<T>& b) {
    for (int64_t level = 0; level < levels_.count; ++level) {
      int64_t first, end;
      rows_of_lane(lane, level, first, end);
      if (first == end) continue;
      bind_rows(b, levels_.starts[level] + first, end - first, lane.frame);
      bind_states(b, lane, level, first);
      if (!in_bulk_) rit::RIT_ISA::run<P>(code_, BEFORE, b, panels_);
      rit::RIT_ISA::run<P>(code_, LOOP, b, panels_);
      if (chain()) finish(b, first, greater(first, lesser(end, level_rows(level + 1))), end);
    }
    if (!chain()) table_.write_last(levels_.last, lane.begin, lane.end);
    const int64_t idle = greater(lane.begin, level_rows(0));  // entries without a row
    for (int field = 0; field < code_.fields && chain() && idle < lane.end; ++field)
      std::memcpy(static_cast<T*>(call_.last[field]) + idle * size(field), table_.state(field, 1 + idle), sizeof(T) * size(field) * (lane.end - idle));
  }

  // Entries [from, end) have no further level: this one's states are their last.
  void finish(const Block<T>& b, int64_t first, int64_t from, int64_t end) {
    for (int field = 0; field < code_.fields && from < end; ++field)
      std::memcpy(static_cast<T*>(call_.last[field]) + from * size(field), b.base[code_.out(field)] + (from - first) * size(field),
                  sizeof(T) * size(field) * (end - from));
  }

  void backward(Lane<T>& lane, Block<T>& b) {
    if (chain()) backward_chain(lane, b);
    else backward_table(lane, b);
  }

  void run_back(Block<T>& b) {
    rit::RIT_ISA::run<P>(code_, BACK, b, panels_);
    if (!after_in_bulk()) rit::RIT_ISA::run<P>(code_, AFTER, b, panels_);
  }

  void bind_gradients(Block<T>& b) const {
    for (int field = 0; field < code_.fields; ++field)
      if (call_.d_out[field]) bind(b, code_.dout(field), static_cast<T*>(const_cast<void*>(call_.d_out[field])) + b.first_row * size(field), size(field));
  }

  void backward_chain(Lane<T>& lane, Block<T>& b) {
    int64_t flowing = 0;  // rows of the lane with a later level behind them
    int turn = 0;
    for (int64_t level = levels_.count - 1; level >= 0; --level) {
      int64_t first, end;
      rows_of_lane(lane, level, first, end);
      if (first == end) continue;
      bind_rows(b, levels_.starts[level] + first, end - first, nullptr);
      bind_states(b, lane, level, first);
      bind_gradients(b);
      for (int field = 0; field < code_.fields; ++field) {
        T* come = lane.carry[2 * field + turn];
        last_gradient(field, first + flowing, end, come + flowing * size(field));
        bind(b, code_.carry(field), come, size(field));
        bind(b, code_.dprev(field, 0), lane.carry[2 * field + 1 - turn], size(field));
      }
      run_back(b);
      flowing = end - first;
      turn = 1 - turn;
    }
    for (int field = 0; field < code_.fields; ++field) {
      T* to = static_cast<T*>(call_.d_entry[field]);
      std::memcpy(to + lane.begin * size(field), lane.carry[2 * field + turn], sizeof(T) * flowing * size(field));
      last_gradient(field, lane.begin + flowing, lane.end, to + (lane.begin + flowing) * size(field));
    }
  }

  // The gradients of the final states of entries [from, end).
  void last_gradient(int field, int64_t from, int64_t end, T* to) const {
    const T* given = static_cast<const T*>(call_.d_last[field]);
    if (from >= end) return;
    if (given) std::memcpy(to, given + from * size(field), sizeof(T) * (end - from) * size(field));
    else std::memset(to, 0, sizeof(T) * (end - from) * size(field));
  }

  void backward_table(Lane<T>& lane, Block<T>& b) {
    table_.add_last(levels_.last, lane.begin, lane.end);
    for (int64_t level = levels_.count - 1; level >= 0; --level) {
      int64_t first, end;
      rows_of_lane(lane, level, first, end);
      if (first == end) continue;
      bind_rows(b, levels_.starts[level] + first, end - first, nullptr);
      bind_states(b, lane, level, first);
      bind_gradients(b);
      for (int field = 0; field < code_.fields; ++field) {
        bind(b, code_.carry(field), table_.gradient(field, b.first_row), size(field));
        bind(b, code_.dprev(field, 0), lane.gathered[most_fields + field], size(field));
      }
      run_back(b);
      for (int field = 0; field < code_.fields; ++field)
        for (int64_t row = 0; row < b.rows; ++row)
          table_.add(field, levels_.source[b.first_row + row], first + row, b.base[code_.dprev(field, 0)] + row * size(field));
    }
  }

  // --- parameters' gradients

  // Where a row of a space lies when the loop is over.
  const T* row_of(const Left& side, int64_t level, int64_t row) const {
    switch (side.space) {
      case X: return static_cast<const T*>(call_.x) + row * code_.input + side.offset;
      case DX: return static_cast<const T*>(call_.d_x) + row * code_.input + side.offset;
      case FRAME: return static_cast<const T*>(call_.frame) + row * frame_stride_ + side.offset;
      default: break;
    }
    const int part = (side.space - FIRST_FIELD) / code_.fields, field = (side.space - FIRST_FIELD) % code_.fields;
    if (part == 1) return static_cast<const T*>(call_.out[field]) + row * size(field) + side.offset;
    if (part > 1) return static_cast<const T*>(call_.d_out[field]) + row * size(field) + side.offset;
    if (!chain()) return table_.state(field, levels_.source[row]) + side.offset;
    const int64_t at = row - levels_.starts[level];
    return (level == 0 ? table_.state(field, 1 + at) : table_.state(field, 1 + levels_.entries + levels_.starts[level - 1] + at)) + side.offset;
  }

  void reduce(int thread, int threads) {
    auto rows_at = [&](const Left& side, int64_t row, int rows, const T** pointers) {
      int64_t level = level_of(row);
      for (int i = 0; i < rows; ++i) {
        while (levels_.starts[level + 1] <= row + i) ++level;
        pointers[i] = row_of(side, level, row + i);
      }
    };
    add_gradients<P>(call_, levels_.rows, rows_at, summing_[thread], thread, threads);
  }

  int64_t level_of(int64_t row) const {
    int64_t low = 0, high = levels_.count;  // the first that ends after the row
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (levels_.starts[middle + 1] <= row) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  static constexpr int most_threads = 256;
  const Call& call_;
  const Code& code_;
  const Levels& levels_;
  const bool backward_;
  const Engine* const donor_;
  Workspace space_;
  Barrier barrier_;
  Team<P> team_;
  int threads_ = 1, lanes_ = 1;
  bool in_bulk_ = false;
  int64_t most_rows_ = 0, scratch_stride_ = 0, frame_stride_ = 0;
  T* constant_ = nullptr;
  Unit** panels_ = nullptr;
  T* all_frames_ = nullptr;
  Table<T> table_;
  Lane<T>* lane_ = nullptr;
  T *bulk_temp_[most_threads], *bulk_scratch_[most_threads], *column_[most_threads];
  Unit* bulk_work_[most_threads];
  Summing<P> summing_[most_threads];
};

template <class P> static void forward(const Call& call) {
  Engine<P>(call, false).run();
}

template <class P> static void backward(const Call& call) {
  Engine<P>(call, true).run();
}

// --- the checkpointed adjoint: a chain in segments, of which backward computes each anew from the state it began with

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
  Workspace space;
  void* outs[most_fields] = {};  // tables want all states of a segment; chains pass them on
  int64_t row = 0, most = 0;
  for (int segment = 0; segment < count; ++segment) most = greater(most, segments[segment]->rows);
  for (int field = 0; field < call.code->fields && segments[0]->source; ++field)
    if (!call.out[field]) outs[field] = space.take(sizeof(T) * static_cast<size_t>(greater(1, most * call.code->sizes[field])));
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
  Workspace space;
  int64_t most = 0, row = 0;
  for (int segment = 0; segment < count; ++segment) {
    most = greater(most, segments[segment]->rows);
    row += segments[segment]->rows;
  }
  auto take = [&](int64_t elements) { return static_cast<T*>(space.take(sizeof(T) * static_cast<size_t>(greater(1, elements)))); };
  void *outs[most_fields], *lasts[most_fields], *blanks[most_fields], *flow[2][most_fields];
  const void *entry[most_fields], *come[most_fields];
  for (int field = 0; field < code.fields; ++field) {
    const int64_t size = code.sizes[field];
    outs[field] = take(most * size);
    lasts[field] = take(entries * size);
    blanks[field] = take(size);
    flow[0][field] = take(entries * size);
    flow[1][field] = take(entries * size);
  }
  void* const frame = take(most * frame_stride(code));
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

// What a stepper keeps: everything but x and the states is bound once.
template <class P> struct Steps {
  using T = typename P::T;
  using Unit = typename P::Unit;

  Steps(const Call& call, int rows) : code(*call.code) {
    panels = static_cast<Unit**>(space.take(sizeof(Unit*) * greater(1, code.packs.size())));
    for (size_t i = 0; i < code.packs.size(); ++i) panels[i] = units(P::packed(code.packs[i].size, code.packs[i].depth));
    pack_weights<P>(call, panels, 0, 1, take(static_cast<int64_t>(deepest(code)) * panel_width<T>()));
    block.workspace = units(P::multiply_workspace(rows, deepest(code)));
    block.rows = rows;
    block.seed = call.seed;
    bind(CONST, take(code.const_size), 0);
    fill_constants(call, block.base[CONST]);
    bind(TEMP, take(code.temp_size * rows_at_once<T>(code)), code.temp_size);
    bind(SCRATCH, take(padded<T>(code.scratch_size) * rows), padded<T>(code.scratch_size));
    bind(FRAME, take(frame_stride(code) * rows), frame_stride(code));
    block.stride[X] = code.input;
    for (int field = 0; field < code.fields; ++field) block.stride[code.prev(field, 0)] = block.stride[code.out(field)] = code.sizes[field];
    if (call.threads > 1 && (worth_sharing<P>(code, BEFORE, rows) || worth_sharing<P>(code, LOOP, rows))) {
      helpers_workspace = units(P::multiply_workspace(rows, deepest(code)));
      team.lead(2);
      block.team = &team;
      helper = new Helper([](void* self) { return static_cast<Steps*>(self)->help(); }, this);
    }
  }

  Steps(const Steps&) = delete;

  ~Steps() { delete helper; }

  bool help() { return team.help_once(1, helpers_workspace); }

  T* take(int64_t elements) { return static_cast<T*>(space.take(static_cast<size_t>(greater(elements, 1)) * sizeof(T))); }

  Unit* units(size_t count) { return static_cast<Unit*>(space.take((count + 1) * sizeof(Unit))); }

  void bind(int which, T* base, int64_t stride) {
    block.base[which] = base;
    block.stride[which] = stride;
  }

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
  Workspace space;
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
