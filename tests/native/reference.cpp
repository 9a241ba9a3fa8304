#include "reference.h"

#include <cmath>
#include <cstdio>
#include <cstring>

namespace native {
namespace {

bool Bit(const uint8_t* row, int64_t channel) { return (row[channel / 8] >> (channel % 8) & 1) != 0; }

void SetBit(uint8_t* row, int64_t channel, bool bit) {
  const auto mask = static_cast<uint8_t>(1 << channel % 8);
  row[channel / 8] = static_cast<uint8_t>(bit ? row[channel / 8] | mask : row[channel / 8] & ~mask);
}

// [rows][channels] of +1 and `low`.
std::vector<int8_t> Values(const Tensor& packed, int64_t channels, int64_t low) {
  const int64_t row_bytes = packed.dims.back();
  const int64_t rows = row_bytes == 0 ? 0 : static_cast<int64_t>(packed.bytes.size()) / row_bytes;
  std::vector<int8_t> values;
  values.reserve(static_cast<size_t>(rows * channels));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t c = 0; c < channels; ++c) {
      values.push_back(Bit(packed.bytes.data() + row * row_bytes, c) ? 1 : static_cast<int8_t>(low));
    }
  }
  return values;
}

// [N, out rows, out columns, O]
struct Accumulators {
  Dims dims;
  std::vector<int32_t> values;
};

Accumulators Convolve(const Node& node) {
  const Tensor& x = node.inputs[0];
  const Tensor& weight = node.inputs[1];
  const int64_t channels = node.integers.at("channels");
  const int64_t groups = node.integers.at("groups");
  const int64_t of_group = channels / groups;
  const int64_t outputs = weight.dims[0];
  const WindowAxis rows = AxisOf(node, 0, weight.dims[1]);
  const WindowAxis columns = AxisOf(node, 1, weight.dims[2]);
  const std::vector<int8_t> xs = Values(x, channels, node.integers.at("low"));
  const std::vector<int8_t> ws = Values(weight, of_group, -1);

  Accumulators result{{x.dims[0], rows.Outputs(), columns.Outputs(), outputs}, {}};
  for (int64_t n = 0; n < result.dims[0]; ++n) {
    for (int64_t oy = 0; oy < result.dims[1]; ++oy) {
      for (int64_t ox = 0; ox < result.dims[2]; ++ox) {
        for (int64_t o = 0; o < outputs; ++o) {
          const int64_t first_channel = o / (outputs / groups) * of_group;
          int32_t sum = 0;
          for (int64_t i = 0; i < rows.kernel; ++i) {
            for (int64_t j = 0; j < columns.kernel; ++j) {
              const int64_t y = oy * rows.stride + i * rows.dilation - rows.begin;
              const int64_t z = ox * columns.stride + j * columns.dilation - columns.begin;
              if (y < 0 || y >= rows.size || z < 0 || z >= columns.size) continue;  // times 0
              const int8_t* a = &xs[static_cast<size_t>(((n * rows.size + y) * columns.size + z) * channels)];
              const int8_t* b = &ws[static_cast<size_t>(((o * rows.kernel + i) * columns.kernel + j) * of_group)];
              for (int64_t c = 0; c < of_group; ++c) sum += a[first_channel + c] * b[c];
            }
          }
          result.values.push_back(sum);
        }
      }
    }
  }
  return result;
}

// Twice: all channels, and then all of them again.
Accumulators Repeat(const Accumulators& acc) {
  Accumulators twice{acc.dims, {}};
  twice.dims[3] *= 2;
  const auto outputs = acc.dims[3];
  for (auto pixel = acc.values.begin(); pixel != acc.values.end(); pixel += outputs) {
    for (int copy = 0; copy < 2; ++copy) twice.values.insert(twice.values.end(), pixel, pixel + outputs);
  }
  return twice;
}

Tensor PackedRows(const Dims& dims) { return Tensor(ORT_UINT8, {dims[0], dims[1], dims[2], RowBytes(dims[3])}); }

// One value per channel, or one for all.
template <class T>
T Of(const Tensor& constants, size_t channel) {
  return constants.As<T>()[constants.dims[0] == 1 ? 0 : channel];
}

Tensor Threshold(const Node& node, const Accumulators& acc) {
  Tensor bits = PackedRows(acc.dims);
  const auto outputs = static_cast<size_t>(acc.dims[3]);
  const auto row_bytes = static_cast<size_t>(bits.dims[3]);
  for (size_t i = 0; i < acc.values.size(); ++i) {
    const size_t o = i % outputs;
    const bool reached = acc.values[i] >= Of<int32_t>(node.inputs[2], o);
    const bool flip = Bit(node.inputs[3].bytes.data(), static_cast<int64_t>(o));
    SetBit(&bits.bytes[i / outputs * row_bytes], static_cast<int64_t>(o), reached != flip);
  }
  return bits;
}

float Clamp(float v, float low, float high) {
  if (v > high) return high;
  return v < low ? low : v;
}

float Hardswish(float v) {
  const float gate = Clamp(v + 3.0f, 0.0f, 6.0f);
  const float product = v * gate;
  return product / 6.0f;
}

float Prelu(float v, float slope) { return v > 0 ? v : v * slope; }

std::vector<Tensor> FloatEpilogue(const Node& node, const std::vector<std::string>& steps, const Accumulators& acc) {
  Tensor floats(ORT_FLOAT, acc.dims);
  Tensor bits = PackedRows(acc.dims);
  const auto outputs = static_cast<size_t>(acc.dims[3]);
  for (size_t i = 0; i < acc.values.size(); ++i) {
    const size_t o = i % outputs;
    size_t input = 2;
    const auto next = [&] { return Of<float>(node.inputs[input++], o); };
    float v = static_cast<float>(acc.values[i]);
    v = v * next();
    v = v + next();
    for (const std::string& step : steps) {
      if (step == "Clamp") {
        const float low = next();
        v = Clamp(v, low, next());
      } else if (step == "Prelu") {
        v = Prelu(v, next());
      } else if (step == "ShiftedPrelu") {
        v = v + next();
        v = Prelu(v, next());
        v = v + next();
      } else if (step == "Hardswish") {
        v = Hardswish(v);
      } else if (step == "Add") {
        v = v + node.inputs[input++].As<float>()[i];
      } else if (step == "Float") {
        floats.As<float>()[i] = v;
      } else {
        SetBit(&bits.bytes[i / outputs * static_cast<size_t>(bits.dims[3])], static_cast<int64_t>(o), v >= next());
      }
    }
  }
  std::vector<Tensor> results;
  for (const std::string& step : steps) {
    if (step == "Float") results.push_back(floats);
    if (step == "Bits") results.push_back(bits);
  }
  return results;
}

// Pack and PackNhwc: the threshold is broadcast to x as numpy does it.
std::vector<Tensor> Pack(const Node& node) {
  const Tensor& x = node.inputs[0];
  const Tensor& threshold = node.inputs[1];
  const bool channels_last = node.op == "PackNhwc";
  const size_t axes[4] = {0, channels_last ? 1u : 2u, channels_last ? 2u : 3u, channels_last ? 3u : 1u};  // N, H, W, C
  const Dims nhwc{x.dims[axes[0]], x.dims[axes[1]], x.dims[axes[2]], x.dims[axes[3]]};
  Tensor bits = PackedRows(nhwc);
  for (size_t i = 0; i < Elements(nhwc); ++i) {
    int64_t at[4];  // index into x
    size_t rest = i;
    for (size_t k = 4; k-- != 0;) {
      at[axes[k]] = static_cast<int64_t>(rest % static_cast<size_t>(nhwc[k]));
      rest /= static_cast<size_t>(nhwc[k]);
    }
    int64_t from = 0;
    for (size_t k = 0; k < 4; ++k) from = from * x.dims[k] + at[k];
    int64_t t = 0;
    const size_t missing = 4 - threshold.dims.size();
    for (size_t k = missing; k < 4; ++k) {
      const int64_t size = threshold.dims[k - missing];
      t = t * size + (size == 1 ? 0 : at[k]);
    }
    const float value = x.As<float>()[from];
    uint8_t* row = bits.bytes.data() + i / static_cast<size_t>(nhwc[3]) * static_cast<size_t>(bits.dims[3]);
    SetBit(row, at[axes[3]], value >= threshold.As<float>()[t]);
  }
  return {bits};
}

std::vector<Tensor> MaxPool(const Node& node) {
  const Tensor& x = node.inputs[0];
  const WindowAxis rows = AxisOf(node, 0, node.lists.at("kernel_shape")[0]);
  const WindowAxis columns = AxisOf(node, 1, node.lists.at("kernel_shape")[1]);
  const bool ceiling = node.integers.at("ceil_mode") != 0;
  Tensor result(ORT_UINT8, {x.dims[0], ceiling ? rows.OutputsCeiling() : rows.Outputs(),
                            ceiling ? columns.OutputsCeiling() : columns.Outputs(), x.dims[3]});
  uint8_t* out = result.bytes.data();
  for (int64_t n = 0; n < result.dims[0]; ++n) {
    for (int64_t oy = 0; oy < result.dims[1]; ++oy) {
      for (int64_t ox = 0; ox < result.dims[2]; ++ox, out += x.dims[3]) {
        for (int64_t c = 0; c < x.dims[3] * 8; ++c) {
          const bool all = Bit(node.inputs[1].bytes.data(), c);  // all taps, or any
          bool bit = all;
          for (int64_t i = 0; i < rows.kernel; ++i) {
            for (int64_t j = 0; j < columns.kernel; ++j) {
              const int64_t y = oy * rows.stride + i * rows.dilation - rows.begin;
              const int64_t z = ox * columns.stride + j * columns.dilation - columns.begin;
              if (y < 0 || y >= rows.size || z < 0 || z >= columns.size) continue;
              const uint8_t* row = x.bytes.data() + ((n * rows.size + y) * columns.size + z) * x.dims[3];
              bit = all ? bit && Bit(row, c) : bit || Bit(row, c);
            }
          }
          SetBit(out, c, bit);
        }
      }
    }
  }
  return {result};
}

}  // namespace

std::vector<std::string> ConvolutionSteps(const std::string& op) {
  const std::string prefix = "BinaryConv2d";
  if (op.compare(0, prefix.size(), prefix) != 0) return {};
  std::vector<std::string> steps;
  for (size_t at = prefix.size(); at < op.size(); at += steps.back().size()) {
    const size_t before = steps.size();
    for (const char* step :
         {"Twice", "Threshold", "ShiftedPrelu", "Prelu", "Clamp", "Hardswish", "Add", "Float", "Bits"}) {
      if (steps.size() == before && op.compare(at, std::strlen(step), step) == 0) steps.push_back(step);
    }
    if (steps.size() == before) return {};
  }
  return steps;
}

int64_t WindowAxis::Outputs() const {
  int64_t count = 0;
  while (count * stride + dilation * (kernel - 1) < size + begin + end) ++count;
  return count;
}

int64_t WindowAxis::OutputsCeiling() const {  // as PyTorch documents it
  const auto room = static_cast<double>(size + begin + end - dilation * (kernel - 1) - 1);
  const auto count = static_cast<int64_t>(std::ceil(room / static_cast<double>(stride))) + 1;
  return (count - 1) * stride >= size + begin ? count - 1 : count;
}

WindowAxis AxisOf(const Node& node, size_t axis, int64_t kernel) {
  const Dims& pads = node.lists.at("pads");
  return {node.inputs[0].dims[1 + axis],      kernel,        node.lists.at("strides")[axis], pads[axis],
          pads[axis + 2], node.lists.at("dilations")[axis]};
}

int64_t RowBytes(int64_t channels) { return (channels + 63) / 64 * 8; }

std::vector<Tensor> Expected(const Node& node) {
  if (node.op == "MaxPool2d") return MaxPool(node);
  std::vector<std::string> steps = ConvolutionSteps(node.op);
  if (steps.empty()) return Pack(node);
  Accumulators acc = Convolve(node);
  if (steps[0] == "Twice") {
    acc = Repeat(acc);
    steps.erase(steps.begin());
  }
  if (steps[0] == "Threshold") return {Threshold(node, acc)};
  return FloatEpilogue(node, steps, acc);
}

std::string Difference(const std::vector<Tensor>& actual, const std::vector<Tensor>& expected) {
  if (actual.size() != expected.size()) return "the number of outputs";
  for (size_t k = 0; k < actual.size(); ++k) {
    const Tensor& a = actual[k];
    const Tensor& e = expected[k];
    const std::string place = "output " + std::to_string(k) + ", ";
    if (a.type != e.type || a.dims != e.dims) return place + a.Describe() + " instead of " + e.Describe();
    const size_t size = ElementBytes(e.type);
    for (size_t i = 0; i < e.bytes.size(); i += size) {
      if (std::memcmp(&a.bytes[i], &e.bytes[i], size) == 0) continue;
      uint32_t got = 0;
      uint32_t wanted = 0;
      std::memcpy(&got, &a.bytes[i], size);
      std::memcpy(&wanted, &e.bytes[i], size);
      if (e.type == ORT_FLOAT && std::isnan(a.As<float>()[i / 4]) && std::isnan(e.As<float>()[i / 4])) continue;
      char text[96];
      std::snprintf(text, sizeof(text), "element %zu is 0x%08x instead of 0x%08x", i / size, got, wanted);
      return place + e.Describe() + ", " + text;
    }
  }
  return "";
}

}  // namespace native
