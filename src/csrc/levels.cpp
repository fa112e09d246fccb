#include "levels.h"

#include <stdexcept>
#include <string>

#include "code.h"

namespace rit {
namespace {

constexpr int64_t most_rows = int64_t{1} << 40;

void expect(bool good, const char* what) {
  if (!good) throw std::invalid_argument(std::string("levels: ") + what);
}

}  // namespace

LevelStore::LevelStore(int64_t entries, std::vector<int64_t> starts, std::vector<int64_t> source, std::vector<int64_t> last)
    : starts_(std::move(starts)), source_(std::move(source)), last_(std::move(last)) {
  expect(!starts_.empty() && starts_[0] == 0, "the first row is 0");
  const bool read_by_number = !last_.empty();
  levels_ = {entries,
             starts_.back(),
             static_cast<int64_t>(starts_.size()) - 1,
             starts_.data(),
             read_by_number ? source_.data() : nullptr,
             read_by_number ? last_.data() : nullptr};
  check();
}

void LevelStore::check() const {
  const Levels& l = levels_;
  expect(l.entries >= 0 && l.entries <= most_rows, "entries are a count");
  for (int64_t level = 0; level < l.count; ++level) {
    expect(starts_[level] <= starts_[level + 1] && starts_[level + 1] <= most_rows, "rows go upwards");
    expect(starts_[level + 1] - starts_[level] <= (level ? starts_[level] - starts_[level - 1] : l.entries), "levels do not grow");
  }
  if (l.source) check_sources();
}

// Rows of one entry depend on rows of that entry alone: so each thread can take its own entries through all levels.
void LevelStore::check_sources() const {
  const Levels& l = levels_;
  expect(static_cast<int64_t>(source_.size()) == l.rows, "a source for each row");
  expect(static_cast<int64_t>(last_.size()) == l.entries, "a final row for each entry");
  std::vector<int64_t> own(1 + l.entries + l.rows, -1);  // of each row of the table; nobody owns the blank one
  for (int64_t entry = 0; entry < l.entries; ++entry) own[1 + entry] = entry;
  for (int64_t level = 0; level < l.count; ++level)
    for (int64_t row = starts_[level]; row < starts_[level + 1]; ++row) {
      const int64_t source = source_[row], entry = row - starts_[level];
      expect(source >= 0 && source <= l.entries + starts_[level], "predecessors lie in earlier levels");
      expect(source == 0 || own[source] == entry, "predecessors belong to the same entry");
      own[1 + l.entries + row] = entry;
    }
  for (int64_t entry = 0; entry < l.entries; ++entry) {
    expect(last_[entry] >= 0 && last_[entry] <= l.entries + l.rows, "final rows lie in the table");
    expect(last_[entry] == 0 || own[last_[entry]] == entry, "final rows belong to their entry");
  }
}

ForestStore::ForestStore(int64_t entries, std::vector<int64_t> levels, std::vector<int64_t> source, std::vector<int64_t> last,
                         std::vector<int64_t> owner, std::vector<int64_t> slots)
    : source_(std::move(source)), last_(std::move(last)), owner_(std::move(owner)), slots_(std::move(slots)) {
  expect(levels.size() % 6 == 0, "a forest's levels have six numbers each");
  for (size_t i = 0; i < levels.size(); i += 6)
    levels_.push_back({levels[i], levels[i + 1], levels[i + 2], levels[i + 3], levels[i + 4], levels[i + 5]});
  forest_ = {entries, static_cast<int64_t>(owner_.size()), static_cast<int64_t>(levels_.size()), levels_.data(), source_.data(), last_.data(), owner_.data()};
  check();
}

void ForestStore::check() const {
  const ForestLevels& f = forest_;
  expect(f.entries >= 0 && f.entries <= most_rows && f.rows <= most_rows, "entries and rows are counts");
  expect(static_cast<int64_t>(last_.size()) == f.entries, "a final row for each entry");
  expect(!slots_.empty(), "rows are of some kind");
  int64_t row = 0;
  std::vector<int64_t> of_kind(slots_.size(), 0), own(1 + f.entries + f.rows, -1);  // own: of each row of the table
  for (int64_t entry = 0; entry < f.entries; ++entry) own[1 + entry] = entry;
  for (const ForestLevel& level : levels_) {
    expect(level.kind >= 0 && level.kind < static_cast<int64_t>(slots_.size()), "a level's kind is there");
    const int64_t slots = slots_[level.kind];
    expect(slots >= 0 && slots <= most_slots, "slots are a count");
    expect(level.start == row && level.rows >= 0 && level.rows <= f.rows - row, "levels cover the rows");
    expect(level.first == of_kind[level.kind], "rows of a kind are numbered in order");
    expect(level.x >= -1 && level.x <= most_rows, "inputs are numbered");
    expect(level.source >= 0 && level.source <= static_cast<int64_t>(source_.size()) - level.rows * slots, "a source for each row and slot");
    for (int64_t i = 0; i < level.rows * slots; ++i) {
      const int64_t source = source_[level.source + i];
      expect(source >= 0 && source <= f.entries + row, "predecessors lie in earlier levels");
      expect(source == 0 || own[source] == owner_[row + i / slots], "predecessors belong to the same entry");
    }
    for (int64_t i = row; i < row + level.rows; ++i) {
      expect(owner_[i] >= (i > row ? owner_[i - 1] : 0) && owner_[i] < f.entries, "owners ascend in a level");
      own[1 + f.entries + i] = owner_[i];
    }
    row += level.rows;
    of_kind[level.kind] += level.rows;
  }
  expect(row == f.rows, "levels cover the rows");
  for (int64_t entry = 0; entry < f.entries; ++entry) {
    expect(last_[entry] >= 0 && last_[entry] <= f.entries + f.rows, "final rows lie in the table");
    expect(last_[entry] == 0 || own[last_[entry]] == entry, "final rows belong to their entry");
  }
}

}  // namespace rit
