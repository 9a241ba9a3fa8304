// Runs the real operators on random nodes and compares them with the reference, bit for bit: every operator, on every
// instruction set of this machine, on one thread and on several, with outputs in the place of inputs where it may be.
// Then every operator refuses malformed nodes.
//
//   native_test [cases] [seed] [first]    `first`: the case to begin with, so that a failing one can be repeated alone

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cases.h"
#include "fake_ort.h"
#include "reference.h"

extern "C" const char* bnnfx_isas() noexcept;

namespace native {
namespace {

constexpr int64_t kCases = 2600;
constexpr size_t kThreads[] = {1, 3};

class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

void Require(bool condition, const std::string& message) {
  if (!condition) throw Failure(message);
}

std::vector<std::string> Isas() {
  std::vector<std::string> names;
  std::istringstream text(bnnfx_isas());
  for (std::string name; std::getline(text, name, ',');) names.push_back(name);
  return names;
}

void SetIsa(const std::string& name) { setenv("BNNFX_ISA", name.c_str(), 1); }

// The element types that the operator declares are those of the reference's inputs and outputs.
void CheckSignature(const OrtCustomOp& op, const Node& node, const std::vector<Tensor>& outputs) {
  Require(op.GetInputTypeCount(&op) == node.inputs.size(), "declares another number of inputs");
  Require(op.GetOutputTypeCount(&op) == outputs.size(), "declares another number of outputs");
  for (size_t i = 0; i < node.inputs.size(); ++i) {
    Require(op.GetInputType(&op, i) == node.inputs[i].type, "declares another type of input " + std::to_string(i));
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    Require(op.GetOutputType(&op, i) == outputs[i].type, "declares another type of output " + std::to_string(i));
  }
}

// A comparison that cannot fail is no test: one bit of each output is flipped, and that has to be noticed.
void CheckThatAFlippedBitIsNoticed(std::vector<Tensor> actual, const std::vector<Tensor>& expected, Random* random) {
  for (Tensor& output : actual) {
    if (output.bytes.empty()) continue;
    // In the lowest byte of a float; not of a NaN, which would still be one.
    const size_t size = ElementBytes(output.type);
    const size_t at = static_cast<size_t>(random->Below(static_cast<int64_t>(output.bytes.size() / size))) * size;
    const bool nan = output.type == ORT_FLOAT && *reinterpret_cast<float*>(&output.bytes[at]) !=
                                                     *reinterpret_cast<float*>(&output.bytes[at]);
    if (nan) continue;
    const auto bit = static_cast<uint8_t>(1 << random->Below(8));
    output.bytes[at] ^= bit;
    const bool noticed = !Difference(actual, expected).empty();
    Require(noticed, "self-check: a flipped bit was not noticed");
    output.bytes[at] ^= bit;
  }
}

void CheckGuards() {
  for (const size_t bytes : {size_t{0}, size_t{5}}) {
    for (const ptrdiff_t at : {ptrdiff_t{-1}, ptrdiff_t{0}}) {
      GuardedMemory memory(bytes);
      Require(memory.Intact(), "self-check: a guard is broken from the start");
      memory.data()[at < 0 ? at : static_cast<ptrdiff_t>(bytes)] = 0;
      Require(!memory.Intact(), "self-check: a write outside an output was not noticed");
    }
  }
}

void CheckCase(const OrtCustomOp& op, const Node& node, Random* random) {
  const std::vector<Tensor> expected = Expected(node);
  CheckSignature(op, node, expected);
  for (const std::string& isa : Isas()) {
    SetIsa(isa);
    const Kernel kernel(op, node);
    for (const size_t threads : kThreads) {
      const bool in_place = random->OneIn(2);
      const std::vector<Tensor> actual = kernel.Run(node.inputs, threads, in_place);
      const std::string difference = Difference(actual, expected);
      Require(difference.empty(), "with " + isa + " on " + std::to_string(threads) + " thread(s)" +
                                      (in_place ? " in place: " : ": ") + difference);
      CheckThatAFlippedBitIsNoticed(actual, expected, random);
    }
  }
  Require(LiveObjects() == 0, "kept a status or a shape");
}

void CheckMessage(const Refusal& refusal, const Node& node, const std::string& part) {
  const std::string message = refusal.what();
  const std::string start = "ai.bnnfx::" + node.op + ", node '" + kNodeName + "': ";
  Require(message.compare(0, start.size(), start) == 0 && message.size() > start.size() &&
              message.find(part) != std::string::npos,
          "the status says '" + message + "', not '" + start + "... " + part + "'");
}

void CheckMalformed(const OrtCustomOp& op, const Malformed& malformed) {
  bool created = false;
  try {
    const Kernel kernel(op, malformed.node);
    created = true;
    kernel.Run(malformed.node.inputs, kThreads[1]);
    Require(false, "was accepted");
  } catch (const Refusal& refusal) {
    Require(created != malformed.at_creation, created ? "was noticed only when it ran" : "was refused too early");
    CheckMessage(refusal, malformed.node, "");
  }
  Require(LiveObjects() == 0, "kept a status or a shape");
}

// A refused run leaves the kernel as it was.
void CheckRecovery(const OrtCustomOp& op, const Node& sound) {
  const Kernel kernel(op, sound);
  std::vector<Tensor> wrong = sound.inputs;
  wrong[0] = Tensor(wrong[0].type, {1, 1});
  bool refused = false;
  try {
    kernel.Run(wrong, 1);
  } catch (const Refusal& refusal) {
    refused = true;
  }
  Require(refused, "x of rank 2 was accepted");
  Require(Difference(kernel.Run(sound.inputs, 1), Expected(sound)).empty(), "differs after a refused run");
}

void CheckUnknownIsa(const OrtCustomOp& op, const Node& node) {
  for (const std::string name : {"sse9", "avx2", "avx512", "amx", "neon"}) {
    const std::vector<std::string> isas = Isas();
    if (std::count(isas.begin(), isas.end(), name) != 0) continue;
    SetIsa(name);
    bool refused = false;
    try {
      const Kernel kernel(op, node);
    } catch (const Refusal& refusal) {
      refused = true;
      CheckMessage(refusal, node, "'" + name + "'; this machine has " + bnnfx_isas());
    }
    SetIsa("");
    Require(refused, "accepts the instruction set " + name);
  }
}

int64_t Argument(int count, char** values, int index, int64_t otherwise) {
  return index < count ? std::strtoll(values[index], nullptr, 10) : otherwise;
}

int Main(int count, char** values) {
  const int64_t cases = Argument(count, values, 1, kCases);
  const auto seed = static_cast<uint64_t>(Argument(count, values, 2, static_cast<int64_t>(std::random_device{}())));
  const int64_t first = Argument(count, values, 3, 0);
  std::printf("seed %llu, instruction sets %s\n", static_cast<unsigned long long>(seed), bnnfx_isas());
  std::fflush(stdout);

  std::string subject = "set-up";
  int64_t i = first;
  try {
    CheckGuards();
    constexpr uint32_t kVersions[] = {17, 18, 30};
    for (const uint32_t version : kVersions) {
      for (const OrtCustomOp* op : RegisteredOps(version)) {
        Require(op->version == std::min(version, kVersions[1]), "operators for another version of the API");
      }
    }
    const std::vector<const OrtCustomOp*> ops = RegisteredOps(kVersions[1]);
    std::set<std::string> names;
    for (const OrtCustomOp* op : ops) {
      const std::string name = op->GetName(op);
      Require(names.insert(name).second, name + " is registered twice");
      const std::vector<std::string> steps = ConvolutionSteps(name);
      const auto has = [&](const char* step) { return std::count(steps.begin(), steps.end(), step) != 0; };
      Require((op->GetMayInplace != nullptr) == (has("Add") && has("Float")), name + " in place, or not");
    }
    Require(names.count("BinaryConv2dAddFloatBits") != 0, "hardly any operator is registered");

    std::set<std::string> met;
    size_t malformed = 0;
    for (; i < first + cases; ++i) {
      const OrtCustomOp& op = *ops[static_cast<size_t>(i) % ops.size()];
      Random random(seed, static_cast<uint64_t>(i));
      subject = std::string("case ") + std::to_string(i) + ", " + op.GetName(&op);
      const Node node = RandomNode(op.GetName(&op), &random);
      subject = "case " + std::to_string(i) + ", " + node.Describe();
      CheckCase(op, node, &random);
      if (!met.insert(node.op).second) continue;  // once per operator is enough for what follows
      SetIsa("");
      CheckRecovery(op, node);
      CheckUnknownIsa(op, node);
      for (const Malformed& spoiled : Spoil(node)) {
        subject = "case " + std::to_string(i) + ", " + spoiled.what + ", " + spoiled.node.Describe();
        CheckMalformed(op, spoiled);
        ++malformed;
      }
    }
    subject = "end";
    Require(cases < static_cast<int64_t>(names.size()) || met == names, "not every operator was met");
    std::printf("%lld cases of %zu operators are right with each, and %zu malformed nodes were refused\n",
                static_cast<long long>(cases), met.size(), malformed);
    return 0;
  } catch (const std::exception& error) {
    std::printf("FAILED: %s: %s\nthis case alone: native_test 1 %llu %lld\n", subject.c_str(), error.what(),
                static_cast<unsigned long long>(seed), static_cast<long long>(i));
    return 1;
  }
}

}  // namespace
}  // namespace native

int main(int count, char** values) { return native::Main(count, values); }
