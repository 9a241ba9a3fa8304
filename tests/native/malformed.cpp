#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "cases.h"

namespace native {
namespace {

constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();
constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

}  // namespace

std::vector<Malformed> Spoil(const Node& sound) {
  std::vector<Malformed> all;
  const auto add = [&](const std::string& what, bool at_creation, const std::function<void(Node*)>& change) {
    all.push_back({what, sound, at_creation});
    change(&all.back().node);
  };
  const bool packs = sound.lists.empty();
  const bool pools = sound.lists.count("kernel_shape") != 0;

  // A constant is read when the kernel is created; Pack and its like read all inputs when they run.
  for (size_t i = 0; i < sound.inputs.size(); ++i) {
    const bool early = sound.constant[i] && !packs;
    const std::string input = "input " + std::to_string(i);
    const auto reshape = [&](const std::string& what, const std::function<void(Dims*)>& change) {
      add(input + what, early, [&](Node* node) {
        Dims dims = sound.inputs[i].dims;
        change(&dims);
        node->inputs[i] = Tensor(sound.inputs[i].type, dims);
      });
    };
    add(input + " of another type", early, [&](Node* node) {
      const int type = sound.inputs[i].type == ORT_FLOAT ? ORT_INT32 : ORT_FLOAT;
      node->inputs[i] = Tensor(type, sound.inputs[i].dims);
    });
    reshape(" of rank 5", [](Dims* dims) { dims->resize(5, 1); });
    if (!packs || i == 0) reshape(" of rank 0", [](Dims* dims) { dims->clear(); });
    if (early) add(input + " not constant", true, [&](Node* node) { node->constant[i] = false; });
    if (packs || (pools && i == 1)) continue;  // any length of a mask is right in itself
    reshape(" with a longer last axis", [](Dims* dims) { dims->back() += 1000; });
    if (early) reshape(" empty", [](Dims* dims) { dims->front() = 0; });
  }
  if (packs) {
    add("threshold that does not fit", false, [&](Node* node) { node->inputs[1] = Tensor(ORT_FLOAT, {999}); });
    add("missing input", false, [](Node* node) {
      node->inputs.pop_back();
      node->constant.pop_back();
    });
  }

  for (const auto& [key, value] : sound.integers) {
    const std::string name = key;
    add("no " + name, true, [&](Node* node) { node->integers.erase(name); });
    if (name == "ceil_mode") continue;  // any integer is a yes or a no
    std::vector<int64_t> wrongs{kLeast, kMost, kMost - 63, int64_t{1} << 40};
    if (name == "low") {
      wrongs.insert(wrongs.end(), {1, -2});
    } else {
      wrongs.insert(wrongs.end(), {0, -1});
    }
    for (const int64_t wrong : wrongs) {
      add(name + "=" + std::to_string(wrong), true, [&](Node* node) { node->integers[name] = wrong; });
    }
  }
  for (const auto& [key, values] : sound.lists) {
    const std::string name = key;
    add("no " + name, true, [&](Node* node) { node->lists.erase(name); });
    add("empty " + name, true, [&](Node* node) { node->lists[name].clear(); });
    add("short " + name, true, [&](Node* node) { node->lists[name].pop_back(); });
    add("long " + name, true, [&](Node* node) { node->lists[name].push_back(1); });
    for (const int64_t wrong : {int64_t{-1}, kLeast, kMost, int64_t{1} << 20}) {
      add(name + " with " + std::to_string(wrong), true, [&](Node* node) { node->lists[name].back() = wrong; });
    }
    if (name != "pads") add(name + " with 0", true, [&](Node* node) { node->lists[name].back() = 0; });
  }
  if (!packs) {
    const int64_t row_bytes = sound.inputs[0].dims[3];
    add("window larger than the map", false, [&](Node* node) {
      node->lists["pads"].assign(4, 0);
      node->inputs[0] = Tensor(ORT_UINT8, {1, 0, 1, row_bytes});
    });
    if (row_bytes == 0) return all;  // the result of a pooling is then empty, however large
    add("result larger than any memory", false, [&](Node* node) {
      node->lists["pads"].assign(4, (int64_t{1} << 20) - 1);
      node->lists["strides"].assign(2, 1);
      node->inputs[0] = Tensor(ORT_UINT8, {1, 1, 1, row_bytes});
    });
  }
  return all;
}

}  // namespace native
