// Working memory that is used again: fresh pages from the system cost more than the work done in them.
#pragma once
#include <cstddef>

namespace rit {

// At least `bytes`, aligned to 64; throws std::bad_alloc.
void* take_memory(size_t bytes);
void give_memory(void* memory);

// Gives everything back when it goes.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  ~Workspace();
  void* take(size_t bytes);

 private:
  void** taken_ = nullptr;
  int count_ = 0, room_ = 0;
};

}  // namespace rit
