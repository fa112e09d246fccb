#include "exact.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include "../../src/csrc/memory.h"

namespace {

// The workspaces of reductions are large, and little of them is used.
void poison(void* memory, size_t bytes) { std::memset(memory, 0xFF, bytes < (1 << 14) ? bytes : 1 << 14); }

}  // namespace

#ifdef RITORNELLO_GUARD_PAGES

namespace {

constexpr size_t page = 4096;

struct Mapping {
  char* start;
  size_t whole, bytes;
};

std::mutex mutex;
std::map<void*, Mapping> mappings;  // by the block that they hold

}  // namespace

// A forbidden page, the block, and where it ends (or up to align - 1 bytes later) a forbidden page.
void* exact_allocate(size_t bytes, size_t align) {
  const size_t room = (bytes + align + page - 1) / page * page, whole = room + 2 * page;
  char* const start = static_cast<char*>(mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (start == MAP_FAILED) throw std::bad_alloc();
  std::memset(start + page, 0xFF, page);
  std::memset(start + whole - 2 * page, 0xFF, page);
  poison(start + page, room);
  if (mprotect(start, page, PROT_NONE) != 0 || mprotect(start + page + room, page, PROT_NONE) != 0) throw std::bad_alloc();
  char* const block = start + (page + room - bytes) / align * align;
  std::lock_guard<std::mutex> lock(mutex);
  mappings[block] = {start, whole, bytes};
  return block;
}

void exact_free(void* memory) {
  if (!memory) return;
  Mapping found;
  {
    std::lock_guard<std::mutex> lock(mutex);
    found = mappings.at(memory);
    mappings.erase(memory);
  }
  char* const block = static_cast<char*>(memory);
  for (char* at = found.start + page; at < found.start + found.whole - page; at = at + 1 == block ? block + found.bytes : at + 1)
    if (*at != static_cast<char>(0xFF)) {
      std::fprintf(stderr, "exact.cpp: a block of %zu bytes was written to at %td\n", found.bytes, at - block);
      std::abort();
    }
  munmap(found.start, found.whole);
}

#else

void* exact_allocate(size_t bytes, size_t align) {
  void* memory = nullptr;
  if (posix_memalign(&memory, align < sizeof(void*) ? sizeof(void*) : align, bytes) != 0) throw std::bad_alloc();
  poison(memory, bytes);
  return memory;
}

void exact_free(void* memory) { std::free(memory); }

#endif

#ifdef RITORNELLO_EXACT_MEMORY

namespace rit {

void* take_memory(size_t bytes) {
  if (bytes > static_cast<size_t>(1) << 31) throw std::bad_alloc();
  return exact_allocate(bytes, 64);
}

void give_memory(void* memory) { exact_free(memory); }

}  // namespace rit

#endif
