#include "pool.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

namespace rit {

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

void wait_a_turn(int turn) {
  constexpr int patience = 20000;
  if (turn < patience) pause_briefly();
  else sched_yield();
}

namespace {

// --- torch's OpenMP: the library that is loaded already, by its name

struct OpenMp {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*thread)() = nullptr;
  int (*threads)() = nullptr;
};

int find_openmp(dl_phdr_info* info, size_t, void* found) {
  const char* name = info->dlpi_name;
  if (!name || !(std::strstr(name, "libgomp") || std::strstr(name, "libiomp5") || std::strstr(name, "libomp"))) return 0;
  void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return 0;
  OpenMp openmp;
  openmp.parallel = reinterpret_cast<decltype(openmp.parallel)>(dlsym(library, "GOMP_parallel"));
  openmp.thread = reinterpret_cast<decltype(openmp.thread)>(dlsym(library, "omp_get_thread_num"));
  openmp.threads = reinterpret_cast<decltype(openmp.threads)>(dlsym(library, "omp_get_num_threads"));
  if (!openmp.parallel || !openmp.thread || !openmp.threads) return 0;
  *static_cast<OpenMp*>(found) = openmp;
  return 1;
}

const OpenMp& openmp() {
  static const OpenMp found = [] {
    OpenMp one;
    if (!std::getenv("RITORNELLO_OWN_THREADS")) dl_iterate_phdr(find_openmp, &one);
    return one;
  }();
  return found;
}

std::atomic<bool> forked{false};

// --- our own threads

struct Job {
  void (*task)(void*, int, int);
  void* context;
  int threads;
};

class Pool {
 public:
  void run(const Job& job) {
    std::lock_guard<std::mutex> one_at_a_time(running_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(workers_) < job.threads - 1) {
        std::thread(&Pool::work, this, workers_ + 1).detach();
        ++workers_;  // only now: where no thread can be started, none is waited for
      }
      job_ = job;
      left_ = job.threads - 1;
      ++number_;
    }
    wake_.notify_all();
    job.task(job.context, 0, job.threads);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return left_ == 0; });
  }

 private:
  void work(int self) {
    long seen = 0;
    for (;;) {
      Job job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return number_ != seen; });
        seen = number_;
        if (self >= job_.threads) continue;
        job = job_;
      }
      job.task(job.context, self, job.threads);
      std::lock_guard<std::mutex> lock(mutex_);
      if (--left_ == 0) done_.notify_one();
    }
  }

  std::mutex running_, mutex_;
  std::condition_variable wake_, done_;
  Job job_{};
  int workers_ = 0, left_ = 0;
  long number_ = 0;
};

Pool* pool = nullptr;
std::mutex pool_mutex;

Pool& own_pool() {
  std::lock_guard<std::mutex> lock(pool_mutex);
  if (!pool) pool = new Pool;  // never destroyed: its threads run on
  return *pool;
}

void after_fork() {
  pool = nullptr;  // its threads stayed in the parent
  new (&pool_mutex) std::mutex;
  forked = true;
}

const bool registered = [] { return pthread_atfork(nullptr, nullptr, after_fork) == 0; }();

void run_openmp(void* data) {
  const Job& job = *static_cast<Job*>(data);
  job.task(job.context, openmp().thread(), openmp().threads());
}

int64_t nanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

void on_threads(int threads, void (*task)(void*, int, int), void* context) {
  Job job{task, context, threads};
  if (threads <= 1) {
    task(context, 0, 1);
  } else if (!forked && openmp().parallel) {
    openmp().parallel(run_openmp, &job, static_cast<unsigned>(threads), 0);
  } else {
    own_pool().run(job);
  }
}

void Barrier::wait(int threads) {
  const int round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  for (int turn = 0; round_.load(std::memory_order_acquire) == round; ++turn) wait_a_turn(turn);
}

struct Helper::State {
  static constexpr int64_t moment = 50000;  // nanoseconds

  State(bool (*help)(void*), void* context) : help(help), context(context) { sem_init(&wake, 0, 0); }
  ~State() { sem_destroy(&wake); }

  bool (*help)(void*);
  void* context;
  std::atomic<bool> leaving{false}, asleep{false};
  sem_t wake;
  int64_t announced = 0;
  pid_t process = getpid();
  std::thread thread;

  void work() {
    while (!leaving.load(std::memory_order_acquire)) {
      const int64_t until = nanoseconds() + moment;
      bool busy = false;
      do {
        for (int turn = 0; turn < 32 && !busy; ++turn) {
          busy = help(context);
          pause_briefly();
        }
      } while (!busy && nanoseconds() < until);
      if (busy) continue;
      asleep.store(true, std::memory_order_release);
      while (sem_wait(&wake) != 0) {
      }
    }
  }
};

Helper::Helper(bool (*help)(void*), void* context) : state_(new State(help, context)) {
  state_->thread = std::thread(&State::work, state_);
}

Helper::~Helper() {
  if (state_->process != getpid()) return;  // after a fork the thread is the parent's: here it can be neither joined nor detached
  state_->leaving.store(true, std::memory_order_release);
  sem_post(&state_->wake);
  state_->thread.join();
  delete state_;
}

void Helper::announce() {
  const int64_t now = nanoseconds(), gap = now - state_->announced;
  state_->announced = now;
  if (gap < State::moment && state_->asleep.load(std::memory_order_acquire) && state_->asleep.exchange(false)) sem_post(&state_->wake);
}

}  // namespace rit
