#include "cases.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "reference.h"

namespace native {
namespace {

constexpr int64_t kMostChannels = 300;
constexpr int64_t kMostProducts = 600 * 1000;  // of a convolution, so that the reference is done in milliseconds
constexpr int64_t kMostSide = 48;              // of a convolution's map; some kernels are for large maps only
constexpr int64_t kMostFloats = 40 * 1000;     // of a map that is packed

int64_t RandomChannels(Random* random, int64_t most) {
  constexpr int64_t edges[] = {1, 3, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 192, 256, 257, 300};
  const int64_t edge = edges[random->Below(sizeof(edges) / sizeof(edges[0]))];
  return random->OneIn(2) && edge <= most ? edge : random->Between(1, most);
}

// Fills rows of packed bits; those beyond `channels` are 0. `share` 0 to 2: none are set, about half, all.
void FillBits(Tensor* tensor, int64_t channels, int64_t share, Random* random) {
  const auto row_bytes = static_cast<size_t>(tensor->dims.back());
  for (size_t i = 0; i < tensor->bytes.size(); ++i) {
    const int64_t left = channels - static_cast<int64_t>(i % row_bytes) * 8;
    const int64_t mask = left >= 8 ? 255 : left <= 0 ? 0 : (int64_t{1} << left) - 1;
    const int64_t bits = share == 0 ? 0 : share == 2 ? 255 : random->Below(256);
    tensor->bytes[i] = static_cast<uint8_t>(bits & mask);
  }
}

Tensor RandomBits(Dims dims, int64_t channels, Random* random) {
  dims.push_back(RowBytes(channels));
  Tensor tensor(ORT_UINT8, dims);
  FillBits(&tensor, channels, 1, random);
  return tensor;
}

// How the floats of a case look: small integers often equal a threshold exactly, fractions need every rounding to be
// the right one, and special values are what comparisons and products of zero get wrong.
class Floats {
 public:
  explicit Floats(Random* random) : random_(*random), integral_(random->OneIn(2)), special_(random->OneIn(2)) {}

  Tensor Make(const Dims& dims) {
    constexpr float inf = std::numeric_limits<float>::infinity();
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    constexpr float specials[] = {0.0f, -0.0f, inf, -inf, nan, 1e-44f, -1e-44f, 3e38f, -3e38f};
    Tensor tensor(ORT_FLOAT, dims);
    for (size_t i = 0; i < Elements(dims); ++i) {
      auto value = static_cast<float>(random_.Between(-3, 3));
      if (!integral_) value += static_cast<float>(random_.Below(1 << 24)) / static_cast<float>(1 << 24);
      if (special_ && random_.OneIn(6)) value = specials[random_.Below(sizeof(specials) / sizeof(specials[0]))];
      tensor.As<float>()[i] = value;
    }
    return tensor;
  }

 private:
  Random& random_;
  bool integral_, special_;
};

// Strides, dilations and pads of random windows, and the map size: such that one fits, and at most `most` per axis or
// somewhat more.
Dims RandomWindows(const Dims& kernel, int64_t most, Node* node, Random* random) {
  Dims& strides = node->lists["strides"] = {random->Between(1, 3), random->Between(1, 3)};
  Dims& dilations = node->lists["dilations"] = {random->Between(1, 3), random->Between(1, 3)};
  Dims& pads = node->lists["pads"] = Dims(4, 0);
  if (random->OneIn(2)) {
    for (int64_t& pad : pads) pad = random->Between(0, 3);
  }
  if (random->OneIn(3)) strides = dilations = {1, 1};
  Dims size;
  for (size_t axis = 0; axis < 2; ++axis) {
    const int64_t least = dilations[axis] * (kernel[axis] - 1) + 1 - pads[axis] - pads[axis + 2];
    const int64_t more = random->OneIn(6) ? 0 : random->Below(strides[axis] * most);
    size.push_back(std::max<int64_t>(least <= 0 && random->OneIn(8) ? 0 : 1, least) + more);
  }
  return size;
}

int64_t RandomImages(Random* random) { return random->OneIn(10) ? 0 : random->OneIn(4) ? random->Between(2, 3) : 1; }

Tensor RandomThresholds(int64_t count, int64_t products, Random* random) {
  constexpr int32_t low = std::numeric_limits<int32_t>::min();
  constexpr int32_t high = std::numeric_limits<int32_t>::max();
  constexpr int32_t extremes[] = {low, low + 1, high - 1, high};
  const auto spread = static_cast<int64_t>(std::sqrt(static_cast<double>(products))) + 1;
  Tensor tensor(ORT_INT32, {count});
  for (int64_t i = 0; i < count; ++i) {
    const auto usual = static_cast<int32_t>(random->Between(-spread, spread));
    tensor.As<int32_t>()[i] = random->OneIn(10) ? extremes[random->Below(4)] : usual;
  }
  return tensor;
}

void AddInput(Node* node, Tensor tensor, bool constant) {
  node->inputs.push_back(std::move(tensor));
  node->constant.push_back(constant);
}

Node RandomConvolution(const std::string& op, const std::vector<std::string>& steps, Random* random) {
  Node node;
  node.op = op;
  const int64_t groups = random->OneIn(3) ? random->Between(2, random->OneIn(3) ? 70 : 9) : 1;
  const int64_t channels = groups * (groups > 9 ? 1 : RandomChannels(random, kMostChannels / groups));
  const int64_t outputs = groups * RandomChannels(random, std::max<int64_t>(1, kMostChannels / groups));
  const bool linear = random->OneIn(8);
  const Dims kernel = linear ? Dims{1, 1} : Dims{random->Between(1, 7), random->Between(1, 7)};
  node.integers = {{"channels", channels}, {"groups", groups}, {"low", -random->Below(2)}};

  // Few channels get a large map, so that it is cut into several tasks.
  const int64_t products = channels / groups * outputs * kernel[0] * kernel[1];
  const int64_t most = random->OneIn(4) ? kMostSide : kMostSide / 2;
  const int64_t side = std::min(most, static_cast<int64_t>(std::sqrt(kMostProducts / products + 1)));
  const Dims map = RandomWindows(kernel, linear ? 1 : std::max<int64_t>(1, side), &node, random);
  AddInput(&node, RandomBits({RandomImages(random), map[0], map[1]}, channels, random), false);
  AddInput(&node, RandomBits({outputs, kernel[0], kernel[1]}, channels / groups, random), true);
  if (random->OneIn(5)) {  // all bits differ: the largest counts
    FillBits(&node.inputs[0], channels, 0, random);
    FillBits(&node.inputs[1], channels / groups, 2, random);
  }

  const int64_t results = steps[0] == "Twice" ? 2 * outputs : outputs;  // channels behind the accumulators
  if (steps.back() == "Threshold") {
    AddInput(&node, RandomThresholds(results, channels / groups * kernel[0] * kernel[1], random), true);
    AddInput(&node, RandomBits({}, results, random), true);
    return node;
  }
  Floats floats(random);
  const auto add_constants = [&](int count) {
    for (int i = 0; i < count; ++i) AddInput(&node, floats.Make({random->OneIn(5) ? 1 : results}), true);
  };
  add_constants(2);  // scale, bias
  for (const std::string& step : steps) {
    if (step == "Add") {
      const int64_t height = AxisOf(node, 0, kernel[0]).Outputs();
      const int64_t width = AxisOf(node, 1, kernel[1]).Outputs();
      AddInput(&node, floats.Make({node.inputs[0].dims[0], height, width, results}), false);
    } else {
      const bool none = step == "Float" || step == "Twice" || step == "Hardswish";
      add_constants(none ? 0 : step == "Clamp" ? 2 : step == "ShiftedPrelu" ? 3 : 1);
    }
  }
  return node;
}

Node RandomPack(const std::string& op, Random* random) {
  Node node;
  node.op = op;
  const int64_t channels = random->OneIn(60) ? 0 : RandomChannels(random, kMostChannels);
  const int64_t side = static_cast<int64_t>(std::sqrt(kMostFloats / std::max<int64_t>(1, channels)));
  const auto size = [&] { return random->OneIn(6) ? 1 : random->Between(1, side); };
  Dims dims{RandomImages(random), channels, size(), size()};
  if (op == "PackNhwc") std::rotate(dims.begin() + 1, dims.begin() + 2, dims.end());
  Dims threshold = dims;
  const bool per_channel = random->OneIn(3);  // the usual one; else any axis may be broadcast
  for (size_t axis = 0; axis < 4; ++axis) {
    const bool is_channels = axis == (op == "PackNhwc" ? 3 : 1);
    if (per_channel ? !is_channels : random->OneIn(2)) threshold[axis] = 1;
  }
  while (!threshold.empty() && threshold[0] == 1 && random->OneIn(2)) threshold.erase(threshold.begin());
  Floats floats(random);
  AddInput(&node, floats.Make(dims), false);
  AddInput(&node, floats.Make(threshold), random->OneIn(2));
  return node;
}

Node RandomPool(Random* random) {
  Node node;
  node.op = "MaxPool2d";
  const Dims kernel{random->Between(1, 4), random->Between(1, 4)};
  const int64_t channels = RandomChannels(random, kMostChannels);
  const Dims map = RandomWindows(kernel, 8, &node, random);
  node.lists["kernel_shape"] = kernel;
  node.integers["ceil_mode"] = random->Below(2);
  AddInput(&node, RandomBits({RandomImages(random), map[0], map[1]}, channels, random), false);
  AddInput(&node, RandomBits({}, channels, random), true);
  // On an empty map, rounding up finds no window where rounding down finds one in the padding.
  const bool fits = AxisOf(node, 0, kernel[0]).OutputsCeiling() > 0 && AxisOf(node, 1, kernel[1]).OutputsCeiling() > 0;
  if (!fits) node.integers["ceil_mode"] = 0;
  if (random->OneIn(4)) {  // rows need not be whole words
    const int64_t bytes = random->Between(0, 13);
    for (Tensor& input : node.inputs) {
      Dims dims = input.dims;
      dims.back() = bytes;
      input = Tensor(ORT_UINT8, dims);
      FillBits(&input, bytes * 8, 1, random);
    }
  }
  return node;
}

}  // namespace

Node RandomNode(const std::string& op, Random* random) {
  const std::vector<std::string> steps = ConvolutionSteps(op);
  if (!steps.empty()) return RandomConvolution(op, steps, random);
  if (op == "Pack" || op == "PackNhwc") return RandomPack(op, random);
  if (op == "MaxPool2d") return RandomPool(random);
  throw std::invalid_argument("the reference knows no operator " + op);
}

}  // namespace native
