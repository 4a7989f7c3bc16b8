#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

/// This program's malloc, calloc and realloc, which can be told to fail: so in all libraries, and in operator new.
namespace lamina::test {

/// False in builds in which another allocator stands in front of it (sanitizers).
bool can_fail_memory();

/// Either is 0: it does not matter.
struct WhichAllocation {
    std::uint64_t number = 0;  ///< The nth, of all threads.
    std::uint64_t stack = 0;   ///< The first with this stack of callers.
};

/// While it lives, that one allocation fails. One at a time.
class FailingMemory {
public:
    explicit FailingMemory(const WhichAllocation& which);
    ~FailingMemory();
    FailingMemory(const FailingMemory&) = delete;
    FailingMemory& operator=(const FailingMemory&) = delete;
    void stop() const;
};

/// The stacks of callers, as numbers, of all allocations from begin_recording() on to the end of `work`.
std::vector<std::uint64_t> allocations_of(const std::function<void()>& work);
void begin_recording();
/// The functions of a stack that was recorded, innermost first.
std::string describe_stack(std::uint64_t stack);

}  // namespace lamina::test
