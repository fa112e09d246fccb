// The engine; backend_<isa>.cpp includes it once per instruction set. All lies in rit::RIT_ISA and uses no template of
// std:: that leaves a weak symbol: the linker keeps one copy of those, and might keep one that this processor cannot run.
#include "checkpointed.h"
#include "forest.h"
#include "stepping.h"

#define RIT_STRING_(text) #text
#define RIT_STRING(text) RIT_STRING_(text)

namespace rit::RIT_ISA {

const Backend* backend() {
  static constexpr Backend table{RIT_STRING(RIT_ISA),
                                 RIT_VECTOR_BYTES,
                                 {forward<Exact<float>>, forward<Exact<double>>, forward<Rounded>},
                                 {backward<Exact<float>>, backward<Exact<double>>, backward<Rounded>},
                                 {forward_checkpointed<Exact<float>>, forward_checkpointed<Exact<double>>, forward_checkpointed<Rounded>},
                                 {backward_checkpointed<Exact<float>>, backward_checkpointed<Exact<double>>, backward_checkpointed<Rounded>},
                                 {forest_forward<Exact<float>>, forest_forward<Exact<double>>, forest_forward<Rounded>},
                                 {forest_backward<Exact<float>>, forest_backward<Exact<double>>, forest_backward<Rounded>},
                                 {open<Exact<float>>, open<Exact<double>>, open<Rounded>},
                                 {step<Exact<float>>, step<Exact<double>>, step<Rounded>},
                                 {close<Exact<float>>, close<Exact<double>>, close<Rounded>}};
  return &table;
}

}  // namespace rit::RIT_ISA
