// Walks the levels. Each thread takes its own entries through all levels, with no barrier between them; parameters'
// gradients come at the end, summed over rows in a fixed order, so that the number of threads changes no bit.
#pragma once
#include <cstring>

#include "gradients.h"
#include "pool.h"
#include "table.h"

namespace rit {
namespace RIT_ISA {

constexpr int few_rows = 6;      // rows of a level per thread below which what needs no state runs over many levels at once
constexpr int chunk_rows = 64;   // rows of a block where they are not bound to a level

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
    for (int field = 0; field < code_.fields; ++field)
      states_[field] = in_bulk_ && code_.early[field] && !call_.out[field] ? room_.numbers(levels_.rows * size(field)) : static_cast<T*>(call_.out[field]);
    constant_ = donor_ ? donor_->constant_ : room_.numbers(code_.const_size);
    panels_ = donor_ ? donor_->panels_ : pack_memory();
    lane_ = room_.template many<Lane<T>>(lanes_);
    share_entries();
    for (int lane = 0; lane < lanes_; ++lane) lane_memory(lane_[lane]);
    if (backward_) gradient_memory();
    else if (!call_.frame && in_bulk_) all_frames_ = room_.numbers(levels_.rows * frame_stride_);
    for (int thread = 0; thread < threads_; ++thread) {
      bulk_temp_[thread] = room_.numbers(code_.temp_size * rows_at_once<T>(code_));
      bulk_scratch_[thread] = room_.numbers(scratch_stride_ * chunk_rows);
      bulk_work_[thread] = room_.product(chunk_rows, code_);
    }
  }

  bool loop_multiplies() const {
    for (const char used : code_.used[backward_ ? BACK : LOOP])
      if (used) return true;
    return false;
  }

  Unit** pack_memory() {
    for (int thread = 0; thread < threads_; ++thread) column_[thread] = room_.column(code_);
    return backward_ ? room_.panels(code_, BACK, AFTER) : room_.panels(code_, BEFORE, LOOP);
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
    lane.temp = room_.numbers(code_.temp_size * rows_at_once<T>(code_));
    lane.scratch = room_.numbers(scratch_stride_ * rows);
    lane.work = room_.product(rows, code_);
    lane.frame = backward_ || call_.frame || in_bulk_ ? nullptr : room_.numbers(frame_stride_ * rows);
    for (int field = 0; field < code_.fields; ++field) {
      for (int turn = 0; turn < 2; ++turn) {
        lane.ring[2 * field + turn] = states_[field] ? nullptr : room_.numbers(rows * size(field));
        lane.carry[2 * field + turn] = backward_ && chain() ? room_.numbers((lane.end - lane.begin) * size(field)) : nullptr;
      }
      lane.gathered[field] = chain() ? nullptr : room_.numbers(rows * size(field));
      lane.gathered[most_fields + field] = chain() || !backward_ ? nullptr : room_.numbers(rows * size(field));
    }
  }

  void gradient_memory() {
    if (!chain()) table_.take_gradients(room_);
    const Code* const code = &code_;
    for (int thread = 0; thread < threads_; ++thread) summing_[thread].take(room_, &code, 1);
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
    bind(b, CONST, constant_, 0);
    bind(b, TEMP, temp, code_.temp_size);
    bind(b, SCRATCH, scratch, scratch_stride_);
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

  void bulk(Routine routine, int thread, int threads) {
    Block<T> b = block(bulk_temp_[thread], bulk_scratch_[thread], bulk_work_[thread]);
    const int64_t chunks = (levels_.rows + chunk_rows - 1) / chunk_rows;
    for (int64_t chunk = chunks * thread / threads; chunk < chunks * (thread + 1) / threads; ++chunk) {
      const int64_t row = chunk * chunk_rows;
      bind_rows(b, row, lesser(chunk_rows, levels_.rows - row), nullptr);
      for (int field = 0; field < code_.fields; ++field)
        if (states_[field]) bind(b, code_.out(field), states_[field] + row * size(field), size(field));
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
      } else if (states_[field]) {
        bind(b, space, states_[field] + (levels_.starts[level - 1] + first) * width, width);
      } else {
        bind(b, space, lane.ring[2 * field + (level - 1) % 2], width);
      }
    }
  }

  void bind_states(Block<T>& b, const Lane<T>& lane, int64_t level, int64_t first) const {
    bind_previous(b, lane, level, first);
    for (int field = 0; field < code_.fields; ++field) {
      T* all = states_[field];
      bind(b, code_.out(field), all ? all + b.first_row * size(field) : lane.ring[2 * field + level % 2], size(field));
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
  Room<P> room_;
  Barrier barrier_;
  Team<P> team_;
  int threads_ = 1, lanes_ = 1;
  bool in_bulk_ = false;
  int64_t most_rows_ = 0, scratch_stride_ = 0, frame_stride_ = 0;
  T* states_[most_fields];  // by field: all rows' states, where they are kept, or written before the loop
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

}  // namespace RIT_ISA
}  // namespace rit
