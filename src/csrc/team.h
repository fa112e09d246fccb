// Products of few rows: the columns of one are shared among the threads, which would have nothing to do otherwise.
#pragma once
#include <atomic>

#include "pool.h"
#include "products.h"

namespace rit {
namespace RIT_ISA {

// One thread leads and posts products, the others help. Each has a part of the columns of its own; what a helper has not
// taken by the time the leader is done with its own part, the leader does too: one that sleeps holds nobody up.
template <class P> class Team {
  using T = typename P::T;
  using Unit = typename P::Unit;

 public:
  static constexpr int most = 8;

  // Whether a product is to be shared: with fewer multiplications waiting costs more than half of them.
  static bool is_worth(int64_t rows, int64_t size, int64_t depth) { return rows * size * depth >= 32768; }

  struct Job {
    const Segment<T>* segments;
    int count, rows;
    const Unit* panels;
    int n, depth;
    const T* start;
    ptrdiff_t start_stride;
    T* c;
    ptrdiff_t c_stride;
  };

  void lead(int threads) { parts_ = smaller(threads, most); }

  // The leader's, after lead(): returns when all of the product is there.
  void multiply(const Job& job, Unit* workspace) {
    job_ = job;
    done_.store(0, std::memory_order_relaxed);
    epoch_ += 1;
    taken_.store(epoch_ << most, std::memory_order_release);
    for (int part = 0; part < parts_; ++part)
      if (take(part)) run(part, workspace);
    for (int turn = 0; done_.load(std::memory_order_acquire) < parts_; ++turn) wait_a_turn(turn);
  }

  // A helper's: whether there was something to do.
  bool help_once(int part, Unit* workspace) {
    const bool taken = take(part);
    if (taken) run(part, workspace);
    return taken;
  }

  // The helpers': returns after finish().
  void help(int part, Unit* workspace) {
    for (int turn = 0; !finished_.load(std::memory_order_acquire);) {
      if (help_once(part, workspace)) turn = 0;
      else wait_a_turn(turn++);
    }
  }

  void finish() { finished_.store(true, std::memory_order_release); }

 private:
  bool take(int part) {
    const uint64_t bit = uint64_t{1} << part;
    uint64_t taken = taken_.load(std::memory_order_acquire);
    while (!(taken & bit))
      if (taken_.compare_exchange_weak(taken, taken | bit, std::memory_order_acq_rel, std::memory_order_acquire)) return true;
    return false;
  }

  void run(int part, Unit* workspace) {
    const int width = panel_width<T>(), panels = ceil_divide(job_.n, width);
    const int first = part_begin(panels, parts_, part), last = part_begin(panels, parts_, part + 1);
    const int column = first * width, end = smaller(job_.n, last * width);
    if (column < end)
      P::multiply(job_.segments, job_.count, job_.rows, job_.panels + first * P::panel(job_.depth), end - column, job_.start ? job_.start + column : nullptr,
                  job_.start_stride, job_.c + column, job_.c_stride, workspace);
    done_.fetch_add(1, std::memory_order_release);
  }

  Job job_{};
  int parts_ = 1;
  uint64_t epoch_ = 0;
  alignas(64) std::atomic<uint64_t> taken_{(uint64_t{1} << most) - 1};  // epoch, and a bit for each part; at first all are taken
  alignas(64) std::atomic<int> done_{0};
  std::atomic<bool> finished_{false};
};

}  // namespace RIT_ISA
}  // namespace rit
