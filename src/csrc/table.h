// The table of a structure's states, read by row number: row 0 is the blank state, then come the entries', then the rows'.
// Beside it the table of the gradients to them.
#pragma once
#include <cstring>

#include "backend.h"
#include "code.h"
#include "memory.h"

namespace rit {
namespace RIT_ISA {

template <class T> class Table {
 public:
  // Where the states lie, says a call.
  void bind(const Call& call, const Code& code, int64_t entries, int64_t rows) {
    call_ = &call;
    code_ = &code;
    entries_ = entries;
    rows_ = rows;
  }

  // Room for gradients, at first zero. It has a blank row for each entry, so that no two threads write to one.
  void take_gradients(Workspace& space) {
    for (int field = 0; field < code_->fields; ++field) {
      const size_t bytes = sizeof(T) * static_cast<size_t>((2 * entries_ + rows_) * size(field));
      gradient_[field] = static_cast<T*>(space.take(bytes + sizeof(T)));
      std::memset(gradient_[field], 0, bytes);
    }
  }

  T* state(int field, int64_t number) const {
    if (number == 0) return static_cast<T*>(const_cast<void*>(call_->blank[field]));
    if (number <= entries_) return static_cast<T*>(const_cast<void*>(call_->entry[field])) + (number - 1) * size(field);
    return static_cast<T*>(call_->out[field]) + (number - 1 - entries_) * size(field);
  }

  // Copies the states of rows whose numbers stand `step` apart.
  void gather(int field, const int64_t* numbers, int step, int rows, T* to) const {
    const int64_t width = size(field);
    for (int row = 0; row < rows; ++row) std::memcpy(to + row * width, state(field, numbers[int64_t{row} * step]), sizeof(T) * static_cast<size_t>(width));
  }

  // The gradient to a row of the structure.
  T* gradient(int field, int64_t row) const { return gradient_[field] + (2 * entries_ + row) * size(field); }

  // Adds to the gradient of a row of the table, on behalf of an entry.
  void add(int field, int64_t number, int64_t entry, const T* gradient) const {
    T* to = gradient_[field] + (number == 0 ? entry : entries_ + number - 1) * size(field);
    for (int64_t i = 0; i < size(field); ++i) to[i] += gradient[i];
  }

  // The final states of some entries, and the gradients to them.
  void write_last(const int64_t* last, int64_t begin, int64_t end) const {
    for (int field = 0; field < code_->fields; ++field)
      for (int64_t entry = begin; entry < end; ++entry) gather(field, last + entry, 1, 1, static_cast<T*>(call_->last[field]) + entry * size(field));
  }

  void add_last(const int64_t* last, int64_t begin, int64_t end) const {
    for (int field = 0; field < code_->fields; ++field)
      for (int64_t entry = begin; entry < end && call_->d_last[field]; ++entry)
        add(field, last[entry], entry, static_cast<const T*>(call_->d_last[field]) + entry * size(field));
  }

  // Writes the gradients of the entries' states and of the blank one.
  void write_gradients() const {
    for (int field = 0; field < code_->fields; ++field) {
      const int64_t width = size(field);
      std::memcpy(call_->d_entry[field], gradient_[field] + entries_ * width, sizeof(T) * static_cast<size_t>(entries_ * width));
      T* blank = static_cast<T*>(call_->d_blank[field]);
      std::memset(blank, 0, sizeof(T) * static_cast<size_t>(width));
      for (int64_t entry = 0; entry < entries_; ++entry)
        for (int64_t i = 0; i < width; ++i) blank[i] += gradient_[field][entry * width + i];
    }
  }

 private:
  int64_t size(int field) const { return code_->sizes[field]; }

  const Call* call_ = nullptr;
  const Code* code_ = nullptr;
  int64_t entries_ = 0, rows_ = 0;
  T* gradient_[most_fields] = {};
};

}  // namespace RIT_ISA
}  // namespace rit
