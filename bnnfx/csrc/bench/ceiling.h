// What binary arithmetic this processor can do at most, measured.

#ifndef BNNFX_BENCH_CEILING_H_
#define BNNFX_BENCH_CEILING_H_

namespace bnnfx {

// Binary multiply-accumulates per second of the loop of kernel.h on one core, with the instruction set that a session
// created now would use. Takes some 50 ms. Throws Error where BNNFX_ISA names no such set.
double MeasureCeiling();

}  // namespace bnnfx

#endif  // BNNFX_BENCH_CEILING_H_
