// The levels of chains, and of forests, copied and checked.
#pragma once
#include <vector>

#include "backend.h"

namespace rit {

class LevelStore {
 public:
  // Throws std::invalid_argument where they are no chains. Empty `source`: each row follows that of the level before.
  LevelStore(int64_t entries, std::vector<int64_t> starts, std::vector<int64_t> source, std::vector<int64_t> last);

  const Levels& levels() const { return levels_; }

 private:
  void check() const;
  void check_sources() const;

  std::vector<int64_t> starts_, source_, last_;
  Levels levels_;
};

class ForestStore {
 public:
  // `levels` holds the fields of ForestLevel, one after the other, of each level; `slots` how many predecessors a row of
  // each kind has. Throws std::invalid_argument where they are no forest.
  ForestStore(int64_t entries, std::vector<int64_t> levels, std::vector<int64_t> source, std::vector<int64_t> last, std::vector<int64_t> owner,
              std::vector<int64_t> slots);

  const ForestLevels& forest() const { return forest_; }
  const std::vector<int64_t>& slots() const { return slots_; }

 private:
  void check() const;

  std::vector<ForestLevel> levels_;
  std::vector<int64_t> source_, last_, owner_, slots_;
  ForestLevels forest_;
};

}  // namespace rit
