#include "memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

namespace rit {

#ifndef RITORNELLO_EXACT_MEMORY  // then tests/native/exact.cpp gives blocks of just the size asked for, each used once

namespace {

constexpr size_t header = 64;             // before each block: its size
constexpr size_t kept_at_most = 1 << 30;  // bytes that wait for their next use
constexpr size_t huge_page = 2 << 20;

struct Store {
  std::mutex mutex;
  std::vector<char*> free;
  size_t bytes = 0;
};

Store& store() {
  static Store* one = new Store;  // never destroyed: threads may outlive the end of main
  return *one;
}

// A fork waits until no other thread is within the store: the child would wait for it for ever.
const bool registered = [] {
  return pthread_atfork([] { store().mutex.lock(); }, [] { store().mutex.unlock(); }, [] { store().mutex.unlock(); }) == 0;
}();

size_t& size_of(char* block) { return *reinterpret_cast<size_t*>(block); }

bool poisoned() {
  static const bool poison = std::getenv("RITORNELLO_POISON") != nullptr;
  return poison;
}

char* reuse(size_t bytes) {
  Store& s = store();
  std::lock_guard<std::mutex> lock(s.mutex);
  size_t best = s.free.size();
  for (size_t i = 0; i < s.free.size(); ++i) {
    const size_t size = size_of(s.free[i]);
    if (size >= bytes && size <= 2 * bytes && (best == s.free.size() || size < size_of(s.free[best]))) best = i;
  }
  if (best == s.free.size()) return nullptr;
  char* block = s.free[best];
  s.free[best] = s.free.back();
  s.free.pop_back();
  s.bytes -= size_of(block);
  return block;
}

char* fresh(size_t bytes) {
  const size_t alignment = bytes >= huge_page ? huge_page : 64;
  void* block = nullptr;
  if (posix_memalign(&block, alignment, bytes) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (bytes >= huge_page) madvise(block, bytes, MADV_HUGEPAGE);
#endif
  size_of(static_cast<char*>(block)) = bytes;
  return static_cast<char*>(block);
}

}  // namespace

void* take_memory(size_t bytes) {
  if (bytes > static_cast<size_t>(-1) / 4) throw std::bad_alloc();
  const size_t whole = (bytes + header + 4095) / 4096 * 4096;
  char* block = reuse(whole);
  if (!block) block = fresh(whole);
  if (poisoned()) std::memset(block + header, 0xFF, bytes);
  return block + header;
}

void give_memory(void* memory) {
  if (!memory) return;
  char* block = static_cast<char*>(memory) - header;
  Store& s = store();
  {
    std::lock_guard<std::mutex> lock(s.mutex);
    if (s.bytes + size_of(block) <= kept_at_most) {
      s.free.push_back(block);
      s.bytes += size_of(block);
      return;
    }
  }
  std::free(block);
}

#endif

Workspace::~Workspace() {
  for (int i = 0; i < count_; ++i) give_memory(taken_[i]);
  std::free(taken_);
}

void* Workspace::take(size_t bytes) {
  if (count_ == room_) {
    void* more = std::realloc(taken_, sizeof(void*) * (2 * room_ + 32));
    if (!more) throw std::bad_alloc();
    taken_ = static_cast<void**>(more);
    room_ = 2 * room_ + 32;
  }
  void* memory = take_memory(bytes);
  taken_[count_++] = memory;
  return memory;
}

}  // namespace rit
