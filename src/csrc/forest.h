// Walks a forest's levels, from the leaves to the roots and back. Each thread takes whole trees through all levels; rows of a
// level differ in kind (how many predecessors they have, whether they have an input), and each kind has code of its own.
#pragma once
#include "engine.h"

namespace rit {
namespace RIT_ISA {

constexpr int forest_chunk = 64;  // rows of a level that go through a routine together

// How many rows each entry has.
template <class P> static const int64_t* owned_rows(Room<P>& room, const int64_t* owner, int64_t rows, int64_t entries) {
  int64_t* const counts = room.template many<int64_t>(entries);
  std::memset(counts, 0, sizeof(int64_t) * static_cast<size_t>(entries));
  for (int64_t row = 0; row < rows; ++row) ++counts[owner[row]];
  return counts;
}

// The first of a level's rows that belongs to an entry or a later one.
static inline int64_t first_owned(const int64_t* owner, int64_t rows, int64_t entry) {
  int64_t low = 0, high = rows;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (owner[middle] < entry) low = middle + 1;
    else high = middle;
  }
  return low;
}

template <class P> class Forest {
  using T = typename P::T;
  using Unit = typename P::Unit;

 public:
  Forest(const ForestCall& call, bool backward) : call_(call.shared), kinds_(call.kinds), kind_count_(call.kind_count), forest_(*call.forest), backward_(backward) {
    prepare();
  }

  void run() {
    on_threads(
        threads_, [](void* self, int thread, int threads) { static_cast<Forest*>(self)->work(thread, threads); }, this);
  }

 private:
  // What a kind's rows are computed with.
  struct Kind {
    const Code* code;
    int64_t scratch_stride, frame_stride, rows;
    T* constant;
    Unit** panels;
    T* frame;
    int64_t* places;  // levels
  };

  // The memory that one thread works in, for rows of its own trees.
  struct Lane {
    int64_t begin, end;  // entries
    T *temp, *scratch, *frame;
    void* work;
    T* gathered[most_spaces];  // by space: predecessors' states, and gradients to them
  };

  const Code& any() const { return *kinds_[0].code; }
  int fields() const { return any().fields; }
  int64_t size(int field) const { return any().sizes[field]; }

  // --- what is set up before the threads start

  void prepare() {
    table_.bind(call_, any(), forest_.entries, forest_.rows);
    threads_ = static_cast<int>(greater(1, lesser(call_.threads, most_threads)));
    lanes_ = static_cast<int>(greater(1, lesser(threads_, forest_.entries)));
    kind_ = room_.template many<Kind>(kind_count_);
    const Code* deep = kinds_[0].code;
    for (int k = 0; k < kind_count_; ++k) deep = deepest(*kinds_[k].code) > deepest(*deep) ? kinds_[k].code : deep;
    for (int thread = 0; thread < threads_; ++thread) column_[thread] = room_.column(*deep);
    for (int k = 0; k < kind_count_; ++k) prepare_kind(k);
    lane_ = room_.template many<Lane>(lanes_);
    const int64_t* const counts = owned_rows(room_, forest_.owner, forest_.rows, forest_.entries);
    share_entries(lane_, lanes_, forest_.entries, forest_.rows, [&](int64_t entry) { return counts[entry]; });
    for (int lane = 0; lane < lanes_; ++lane) lane_memory(lane_[lane], *deep);
    if (backward_) gradient_memory();
  }

  void prepare_kind(int k) {
    const Code& code = *kinds_[k].code;
    Unit** const panels = backward_ ? room_.panels(code, BACK, AFTER) : room_.panels(code, BEFORE, LOOP);
    Kind& kind = kind_[k];
    kind = {&code, padded<T>(code.scratch_size), rit::frame_stride(code), 0, room_.numbers(code.const_size), panels, static_cast<T*>(kinds_[k].frame), nullptr};
    for (int64_t level = 0; level < forest_.count; ++level)
      if (forest_.levels[level].kind == k) kind.rows += forest_.levels[level].rows;
  }

  void lane_memory(Lane& lane, const Code& deep) {
    int64_t temp = 1, scratch = 1, frame = 1;
    int slots = 1;
    for (int k = 0; k < kind_count_; ++k) {
      const Code& code = *kinds_[k].code;
      temp = greater(temp, int64_t{code.temp_size} * rows_at_once<T>(code));
      scratch = greater(scratch, kind_[k].scratch_stride);
      frame = greater(frame, kind_[k].frame_stride);
      slots = static_cast<int>(greater(slots, code.slots));
    }
    lane.temp = room_.numbers(temp);
    lane.scratch = room_.numbers(scratch * forest_chunk);
    lane.frame = room_.numbers(frame * forest_chunk);
    lane.work = room_.product(forest_chunk, deep);
    for (int field = 0; field < fields(); ++field)
      for (int slot = 0; slot < slots; ++slot) {
        lane.gathered[2 * (slot * fields() + field)] = room_.numbers(forest_chunk * size(field));
        lane.gathered[2 * (slot * fields() + field) + 1] = backward_ ? room_.numbers(forest_chunk * size(field)) : nullptr;
      }
  }

  void gradient_memory() {
    table_.take_gradients(room_);
    const Code** const codes = room_.template many<const Code*>(kind_count_);
    for (int k = 0; k < kind_count_; ++k) codes[k] = kinds_[k].code;
    for (int thread = 0; thread < threads_; ++thread) summing_[thread].take(room_, codes, kind_count_);
    for (int k = 0; k < kind_count_; ++k) note_places(k);
  }

  // In which level each chunk of a kind's rows begins.
  void note_places(int k) {
    constexpr int chunk = Summing<P>::chunk;
    kind_[k].places = room_.template many<int64_t>(kind_[k].rows / chunk + 1);
    int64_t next = 0;
    for (int64_t number = 0; number < forest_.count; ++number) {
      const ForestLevel& level = forest_.levels[number];
      for (; level.kind == k && next * chunk < level.first + level.rows; ++next) kind_[k].places[next] = number;
    }
  }

  // --- what the threads do

  void work(int thread, int threads) {
    for (int k = 0; k < kind_count_; ++k) {
      rit::RIT_ISA::pack_weights<P>(kinds_[k], kind_[k].panels, thread, threads, column_[thread]);
      if (thread == 0) fill_constants(kinds_[k], kind_[k].constant);
      if (backward_) clear_gradients<T>(kinds_[k], thread, threads);
    }
    barrier_.wait(threads);
    for (int lane = thread; lane < lanes_; lane += threads) {
      if (backward_) backward(lane_[lane]);
      else forward(lane_[lane]);
    }
    if (!backward_) return;
    barrier_.wait(threads);
    for (int k = 0; k < kind_count_; ++k) reduce(k, thread, threads);
    if (thread == 0) table_.write_gradients();
  }

  void forward(Lane& lane) {
    for (int64_t level = 0; level < forest_.count; ++level)
      each_chunk(lane, level, [&](const Kind& kind, Block<T>& b, int64_t) {
        rit::RIT_ISA::run<P>(*kind.code, BEFORE, b, kind.panels);
        rit::RIT_ISA::run<P>(*kind.code, LOOP, b, kind.panels);
      });
    table_.write_last(forest_.last, lane.begin, lane.end);
  }

  void backward(Lane& lane) {
    table_.add_last(forest_.last, lane.begin, lane.end);
    for (int64_t level = forest_.count - 1; level >= 0; --level)
      each_chunk(lane, level, [&](const Kind& kind, Block<T>& b, int64_t source) {
        rit::RIT_ISA::run<P>(*kind.code, BACK, b, kind.panels);
        rit::RIT_ISA::run<P>(*kind.code, AFTER, b, kind.panels);
        hand_on(*kind.code, b, source);
      });
  }

  // Calls go(kind, block, where the rows' sources begin) for the rows of a level that belong to a lane, some at a time.
  template <class Go> void each_chunk(Lane& lane, int64_t number, Go go) {
    const ForestLevel& level = forest_.levels[number];
    const Kind& kind = kind_[level.kind];
    const int64_t* const owner = forest_.owner + level.start;
    const int64_t begin = first_owned(owner, level.rows, lane.begin), end = first_owned(owner, level.rows, lane.end);
    for (int64_t first = begin; first < end; first += forest_chunk) {
      Block<T> b{};
      const int64_t source = level.source + first * kind.code->slots;
      bind_block(b, lane, level, kind, first, lesser(forest_chunk, end - first));
      bind_states(b, lane, *kind.code, source);
      if (backward_) bind_gradients(b, lane, *kind.code);
      go(kind, b, source);
    }
  }

  void bind_block(Block<T>& b, const Lane& lane, const ForestLevel& level, const Kind& kind, int64_t first, int64_t rows) const {
    const Code& code = *kind.code;
    b.workspace = lane.work;
    b.seed = call_.seed;
    b.rows = static_cast<int>(rows);
    b.first_row = level.start + first;
    b.number = b.first_row;
    bind(b, CONST, kind.constant, 0);
    bind(b, TEMP, lane.temp, code.temp_size);
    bind(b, SCRATCH, lane.scratch, kind.scratch_stride);
    bind(b, FRAME, kind.frame ? kind.frame + (level.first + first) * kind.frame_stride : lane.frame, kind.frame_stride);
    if (level.x < 0) return;
    bind(b, X, static_cast<T*>(const_cast<void*>(call_.x)) + (level.x + first) * code.input, code.input);
    if (call_.d_x) bind(b, DX, static_cast<T*>(call_.d_x) + (level.x + first) * code.input, code.input);
  }

  void bind_states(Block<T>& b, const Lane& lane, const Code& code, int64_t source) const {
    for (int field = 0; field < code.fields; ++field) {
      const int64_t width = size(field);
      for (int slot = 0; slot < code.slots; ++slot) {
        T* to = lane.gathered[2 * (slot * code.fields + field)];
        table_.gather(field, forest_.source + source + slot, code.slots, b.rows, to);
        bind(b, code.prev(field, slot), to, width);
      }
      bind(b, code.out(field), static_cast<T*>(call_.out[field]) + b.first_row * width, width);
    }
  }

  void bind_gradients(Block<T>& b, const Lane& lane, const Code& code) const {
    for (int field = 0; field < code.fields; ++field) {
      const int64_t width = size(field);
      if (call_.d_out[field]) bind(b, code.dout(field), static_cast<T*>(const_cast<void*>(call_.d_out[field])) + b.first_row * width, width);
      bind(b, code.carry(field), table_.gradient(field, b.first_row), width);
      for (int slot = 0; slot < code.slots; ++slot) bind(b, code.dprev(field, slot), lane.gathered[2 * (slot * code.fields + field) + 1], width);
    }
  }

  void hand_on(const Code& code, const Block<T>& b, int64_t source) {
    for (int field = 0; field < code.fields; ++field)
      for (int row = 0; row < b.rows; ++row)
        for (int slot = 0; slot < code.slots; ++slot)
          table_.add(field, forest_.source[source + row * code.slots + slot], forest_.owner[b.first_row + row], b.base[code.dprev(field, slot)] + row * size(field));
  }

  // --- parameters' gradients: over all rows of a kind

  void reduce(int k, int thread, int threads) {
    auto rows_at = [&](const Left& side, int64_t row, int rows, const T** pointers) {
      int64_t number = level_of(k, row);
      for (int i = 0; i < rows; ++number) {
        const ForestLevel& level = forest_.levels[number];
        if (level.kind != k) continue;
        for (int64_t at = row + i - level.first; at < level.rows && i < rows; ++at, ++i) pointers[i] = row_of(side, k, level, at);
      }
    };
    add_gradients<P>(kinds_[k], kind_[k].rows, rows_at, summing_[thread], thread, threads);
  }

  // A level that is not behind the one with that row of a kind.
  int64_t level_of(int k, int64_t row) const { return kind_[k].places[row / Summing<P>::chunk]; }

  // Where a row of a space lies when the walk is over.
  const T* row_of(const Left& side, int k, const ForestLevel& level, int64_t row) const {
    const Code& code = *kinds_[k].code;
    switch (side.space) {
      case X: return static_cast<const T*>(call_.x) + (level.x + row) * code.input + side.offset;
      case DX: return static_cast<const T*>(call_.d_x) + (level.x + row) * code.input + side.offset;
      case FRAME: return kind_[k].frame + (level.first + row) * kind_[k].frame_stride + side.offset;
      default: break;
    }
    const int number = side.space - FIRST_FIELD, states = code.slots * code.fields;
    const int field = number % code.fields, slot = number / code.fields;
    if (number < states) return table_.state(field, forest_.source[level.source + row * code.slots + slot]) + side.offset;
    const void* all = number < states + code.fields ? call_.out[field] : call_.d_out[field];
    return static_cast<const T*>(all) + (level.start + row) * size(field) + side.offset;
  }

  static constexpr int most_threads = 256;
  const Call& call_;
  const Call* const kinds_;
  const int kind_count_;
  const ForestLevels& forest_;
  const bool backward_;
  Room<P> room_;
  Barrier barrier_;
  int threads_ = 1, lanes_ = 1;
  Kind* kind_ = nullptr;
  Lane* lane_ = nullptr;
  Table<T> table_;
  T* column_[most_threads];
  Summing<P> summing_[most_threads];
};

template <class P> static void forest_forward(const ForestCall& call) { Forest<P>(call, false).run(); }

template <class P> static void forest_backward(const ForestCall& call) { Forest<P>(call, true).run(); }

}  // namespace RIT_ISA
}  // namespace rit
