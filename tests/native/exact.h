// Memory that ends where it was said to end. With -fsanitize=address the sanitizer watches its edges; otherwise pages that
// nobody may touch do, which also stops the vector instructions that the sanitizer does not see.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

// The first 16 KB are filled with 0xFF, which is NaN; `align` a power of two. Beyond the edges: at most align - 1 bytes unwatched, checked when it is freed.
void* exact_allocate(size_t bytes, size_t align);
void exact_free(void* memory);

// An array with edges.
template <class T> class Exact {
 public:
  Exact() = default;
  explicit Exact(int64_t count) : data_(static_cast<T*>(exact_allocate(static_cast<size_t>(count) * sizeof(T), alignof(T)))), count_(count) {}
  Exact(Exact&& other) noexcept { *this = std::move(other); }
  Exact& operator=(Exact&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~Exact() { exact_free(data_); }

  T* data() const { return data_; }
  int64_t count() const { return count_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  int64_t count_ = 0;
};
