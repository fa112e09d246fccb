// Threads. The work goes to torch's own OpenMP threads where they are found, so that no second set of threads contends with
// them; after a fork, where those do not live on, and where there is no OpenMP, to threads of our own.
#pragma once
#include <atomic>

namespace rit {

// Calls task(context, thread, threads) on up to `threads` threads, the caller's among them, and waits for all.
// The task is told how many there really are; it must not throw.
void on_threads(int threads, void (*task)(void* context, int thread, int threads), void* context);

void pause_briefly();
void wait_a_turn(int turn);  // of turns from 0; after many, the processor is left to others

// A thread of its own that shares the work of calls that follow one another within microseconds. Between them it looks for
// more; after a moment without it sleeps, and is woken only when calls come that fast again. Nobody waits for it to wake up.
class Helper {
 public:
  // help(context) does what there is to do, and says whether there was anything.
  Helper(bool (*help)(void*), void* context);
  ~Helper();
  Helper(const Helper&) = delete;
  void announce();  // that a call begins

 private:
  struct State;
  State* const state_;
};

// Where the threads of one on_threads wait for each other.
class Barrier {
 public:
  void wait(int threads);

 private:
  std::atomic<int> arrived_{0};
  std::atomic<int> round_{0};
};

}  // namespace rit
