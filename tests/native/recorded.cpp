#include "recorded.h"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace {

class File {
 public:
  explicit File(const std::string& path) : path_(path) {
    std::ifstream file(path);
    if (!file) throw std::runtime_error("cannot read " + path);
    std::stringstream all;
    all << file.rdbuf();
    text_ = all.str();
    at_ = text_.c_str();
  }

  std::string word() {
    while (*at_ == ' ' || *at_ == '\n') ++at_;
    const char* begin = at_;
    while (*at_ && *at_ != ' ' && *at_ != '\n') ++at_;
    return std::string(begin, at_);
  }

  void expect(const std::string& name) {
    const std::string found = word();
    if (found != name) throw std::runtime_error(path_ + ": expected '" + name + "', found '" + found + "'");
  }

  Integers integers(const std::string& name) {
    return array<int64_t>(name, [](const char* from, char** to) { return static_cast<int64_t>(std::strtoll(from, to, 10)); });
  }
  int64_t integer(const std::string& name) { return integers(name).at(0); }
  Numbers numbers(const std::string& name) { return array<double>(name, std::strtod); }

  std::vector<Numbers> several(const std::string& name, size_t count) {
    std::vector<Numbers> found;
    for (size_t i = 0; i < count; ++i) found.push_back(numbers(name));
    return found;
  }

 private:
  template <class T, class Parse> std::vector<T> array(const std::string& name, Parse parse) {
    expect(name);
    char* end;
    std::vector<T> found(std::strtoull(at_, &end, 10));
    for (T& value : found) {
      at_ = end;
      value = parse(at_, &end);
    }
    at_ = end;
    return found;
  }

  std::string path_, text_;
  const char* at_;
};

Program read_program(File& file) {
  Program program{file.integers("ints"), file.numbers("constants"), {}};
  const int64_t parameters = file.integer("parameters");
  for (int64_t i = 0; i < parameters; ++i) {
    const Integers shape = file.integers("shape");
    program.parameters.push_back({shape[0], shape[1], shape[2] == 1, file.numbers("values")});
  }
  return program;
}

// The whole of the chains comes first, then its segments; without chains, a forest.
void read_structure(File& file, Case& each) {
  const int64_t chains = file.integer("chains");
  for (int64_t i = 0; i < chains; ++i) {
    LevelInts levels{file.integer("entries"), file.integers("starts"), file.integers("source"), file.integers("last")};
    if (i == 0) each.levels = std::move(levels);
    else each.segments.push_back(std::move(levels));
  }
  if (chains) return;
  each.forest = {file.integer("entries"),  file.integers("levels"), file.integers("source"),  file.integers("last"),
                 file.integers("owner"), file.integers("slots"),  file.integers("programs")};
}

void read_gradients(File& file, const Recorded& recorded, Case& each) {
  for (auto [values, given] : {std::pair(&each.d_out, &each.d_out_given), std::pair(&each.d_last, &each.d_last_given)})
    for (int field = 0; field < recorded.fields; ++field) {
      values->push_back(file.numbers("weights"));
      given->push_back(file.integer("are_given") == 1);
    }
  each.d_x = file.numbers("gradient");
  each.d_entry = file.several("gradient", recorded.fields);
  each.d_blank = file.several("gradient", recorded.fields);
  for (const Program& program : recorded.programs)
    for (size_t i = 0; i < program.parameters.size(); ++i) each.d_parameters.push_back(file.numbers("gradient"));
}

Case read_case(File& file, const Recorded& recorded) {
  Case each{};
  file.expect("case");
  each.name = file.word();
  each.seed = static_cast<uint64_t>(file.integer("seed"));
  read_structure(file, each);
  each.x = file.numbers("given");
  each.entry = file.several("given", recorded.fields);
  each.blank = file.several("given", recorded.fields);
  each.out = file.several("given", recorded.fields);
  each.last = file.several("given", recorded.fields);
  if (recorded.gradients) read_gradients(file, recorded, each);
  return each;
}

}  // namespace

std::vector<rit::Code> Recorded::codes() const {
  std::vector<rit::Code> found;
  for (const Program& program : programs) found.push_back(rit::read_code(program.ints, program.constants));
  return found;
}

Recorded read_recorded(const std::string& path) {
  File file(path);
  Recorded recorded{};
  recorded.name = path.substr(path.rfind('/') + 1);
  const Integers wants = file.integers("wants");
  recorded.gradients = wants[0] == 1;
  recorded.wants_x = wants[1] == 1;
  recorded.fields = static_cast<int>(wants.size()) - 2;
  const int64_t programs = file.integer("programs");
  for (int64_t i = 0; i < programs; ++i) recorded.programs.push_back(read_program(file));
  const int64_t cases = file.integer("cases");
  for (int64_t i = 0; i < cases; ++i) recorded.cases.push_back(read_case(file, recorded));
  return recorded;
}
