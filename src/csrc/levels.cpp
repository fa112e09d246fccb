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

LevelStore::LevelStore(int64_t entries, std::vector<int64_t> starts, std::vector<int64_t> source, int slots, std::vector<int64_t> last,
                       std::vector<int64_t> owner)
    : starts_(std::move(starts)), source_(std::move(source)), last_(std::move(last)), owner_(std::move(owner)), slots_(slots) {
  expect(!starts_.empty() && starts_[0] == 0, "the first row is 0");
  levels_ = {entries,
             starts_.back(),
             static_cast<int64_t>(starts_.size()) - 1,
             starts_.data(),
             last_.empty() ? nullptr : source_.data(),
             last_.empty() ? nullptr : last_.data(),
             owner_.empty() ? nullptr : owner_.data()};
  check();
}

void LevelStore::check() const {
  const Levels& l = levels_;
  expect(l.entries >= 0 && l.entries <= most_rows && slots_ >= 1 && slots_ <= most_slots, "entries and slots are counts");
  for (int64_t level = 0; level < l.count; ++level) {
    expect(starts_[level] <= starts_[level + 1] && starts_[level + 1] <= most_rows, "rows go upwards");
    const int64_t rows = starts_[level + 1] - starts_[level];
    if (!l.owner) expect(rows <= (level ? starts_[level] - starts_[level - 1] : l.entries), "levels of chains do not grow");
  }
  if (!l.source) {
    expect(slots_ == 1 && !l.owner, "a chain has one predecessor a row");
    return;
  }
  expect(static_cast<int64_t>(source_.size()) == l.rows * slots_, "a source for each row and slot");
  expect(static_cast<int64_t>(last_.size()) == l.entries || l.entries == 0, "a final row for each entry");
  for (int64_t level = 0; level < l.count; ++level)
    for (int64_t i = starts_[level] * slots_; i < starts_[level + 1] * slots_; ++i)
      expect(source_[i] >= 0 && source_[i] <= l.entries + starts_[level], "predecessors lie in earlier levels");
  for (int64_t row : last_) expect(row >= 0 && row <= l.entries + l.rows, "final rows lie in the table");
  check_owners();
}

// Rows of one entry depend on rows of that entry alone: so each thread can take its own entries through all levels.
void LevelStore::check_owners() const {
  const Levels& l = levels_;
  std::vector<int64_t> own(1 + l.entries + l.rows, -1);  // of each row of the table; nobody owns the blank one
  for (int64_t entry = 0; entry < l.entries; ++entry) own[1 + entry] = entry;
  expect(!l.owner || static_cast<int64_t>(owner_.size()) == l.rows, "an owner for each row");
  for (int64_t level = 0; level < l.count; ++level)
    for (int64_t row = starts_[level]; row < starts_[level + 1]; ++row) {
      const int64_t owner = l.owner ? owner_[row] : row - starts_[level];
      expect(owner >= (l.owner && row > starts_[level] ? owner_[row - 1] : 0) && owner < l.entries, "owners ascend within a level");
      for (int64_t i = row * slots_; i < (row + 1) * slots_; ++i)
        expect(source_[i] == 0 || own[source_[i]] == owner, "predecessors belong to the same entry");
      own[1 + l.entries + row] = owner;
    }
  for (int64_t entry = 0; entry < static_cast<int64_t>(last_.size()); ++entry)
    expect(last_[entry] == 0 || own[last_[entry]] == entry, "final rows belong to their entry");
}

ForestStore::ForestStore(int64_t entries, std::vector<int64_t> levels, std::vector<int64_t> source, std::vector<int64_t> last,
                         std::vector<int64_t> owner, std::vector<int64_t> slots)
    : source_(std::move(source)), last_(std::move(last)), owner_(std::move(owner)), slots_(std::move(slots)) {
  expect(levels.size() % 6 == 0, "a forest's levels have six numbers each");
  for (size_t i = 0; i < levels.size(); i += 6)
    levels_.push_back({levels[i], levels[i + 1], levels[i + 2], levels[i + 3], levels[i + 4], static_cast<int>(levels[i + 5])});
  forest_ = {entries, static_cast<int64_t>(owner_.size()), static_cast<int64_t>(levels_.size()), levels_.data(), source_.data(), last_.data(), owner_.data()};
  check();
}

void ForestStore::check() const {
  const ForestLevels& f = forest_;
  expect(f.entries >= 0 && f.entries <= most_rows && f.rows <= most_rows, "entries and rows are counts");
  expect(static_cast<int64_t>(last_.size()) == f.entries, "a final row for each entry");
  int64_t row = 0;
  std::vector<int64_t> of_kind(slots_.size(), 0);
  for (const ForestLevel& level : levels_) {
    expect(level.kind >= 0 && level.kind < static_cast<int>(slots_.size()), "a level's kind is there");
    const int64_t slots = slots_[level.kind];
    expect(slots >= 1 && slots <= most_slots, "slots are a count");
    expect(level.start == row && level.rows >= 0 && level.rows <= f.rows - row, "levels cover the rows");
    expect(level.first == of_kind[level.kind], "rows of a kind are numbered in order");
    expect(level.x >= 0 && level.x <= most_rows, "inputs are numbered");
    expect(level.source >= 0 && level.source <= static_cast<int64_t>(source_.size()) - level.rows * slots, "a source for each row and slot");
    for (int64_t i = level.source; i < level.source + level.rows * slots; ++i)
      expect(source_[i] >= 0 && source_[i] <= f.entries + row, "predecessors lie in earlier levels");
    for (int64_t i = row; i < row + level.rows; ++i)
      expect(owner_[i] >= (i > row ? owner_[i - 1] : 0) && owner_[i] < f.entries, "owners ascend in a level");
    row += level.rows;
    of_kind[level.kind] += level.rows;
  }
  expect(row == f.rows, "levels cover the rows");
  for (int64_t last : last_) expect(last >= 0 && last <= f.entries + f.rows, "final rows lie in the table");
}

}  // namespace rit
