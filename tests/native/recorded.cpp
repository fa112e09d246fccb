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

void read_gradients(File& file, Recorded& recorded, Case& each) {
  for (auto [values, given] : {std::pair(&each.d_out, &each.d_out_given), std::pair(&each.d_last, &each.d_last_given)})
    for (int field = 0; field < recorded.fields; ++field) {
      values->push_back(file.numbers("weights"));
      given->push_back(file.integers("are_given")[0] == 1);
    }
  each.d_x = file.numbers("gradient");
  each.d_entry = file.several("gradient", recorded.fields);
  each.d_blank = file.several("gradient", recorded.fields);
  each.d_parameters = file.several("gradient", recorded.parameters.size());
}

}  // namespace

Recorded read_recorded(const std::string& path) {
  File file(path);
  Recorded recorded{};
  recorded.name = path.substr(path.rfind('/') + 1);
  recorded.ints = file.integers("ints");
  recorded.constants = file.numbers("constants");
  const Integers wants = file.integers("wants");
  recorded.gradients = wants[0] == 1;
  recorded.wants_x = wants[1] == 1;
  recorded.fields = static_cast<int>(wants.size()) - 2;
  const int64_t parameters = file.integers("parameters")[0];
  for (int64_t i = 0; i < parameters; ++i) {
    const Integers shape = file.integers("shape");
    recorded.parameters.push_back({shape[0], shape[1], shape[2] == 1, file.numbers("values")});
  }
  const int64_t cases = file.integers("cases")[0];
  for (int64_t i = 0; i < cases; ++i) {
    Case each{};
    file.expect("case");
    each.name = file.word();
    each.seed = static_cast<uint64_t>(file.integers("seed")[0]);
    const int64_t pieces = file.integers("levels")[0];
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const Integers sizes = file.integers("entries");
      each.segments.push_back(
          {sizes[0], static_cast<int>(sizes[1]), file.integers("starts"), file.integers("source"), file.integers("last"), file.integers("owner")});
    }
    each.levels = each.segments[0];  // the whole comes first
    each.segments.erase(each.segments.begin());
    each.x = file.numbers("given");
    each.entry = file.several("given", recorded.fields);
    each.blank = file.several("given", recorded.fields);
    each.out = file.several("given", recorded.fields);
    each.last = file.several("given", recorded.fields);
    if (recorded.gradients) read_gradients(file, recorded, each);
    recorded.cases.push_back(std::move(each));
  }
  return recorded;
}
