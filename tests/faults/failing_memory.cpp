#include "faults/failing_memory.h"

#include <execinfo.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <string_view>

// glibc lets a program bring its own malloc; ours asks glibc's, unless it is to fail. What is recorded lies in fixed
// arrays, because nothing may be allocated within an allocation.

namespace lamina::test {

namespace {

constexpr std::size_t kMostAllocations = 2'000'000;
constexpr std::size_t kMostStacks = 20'000;
constexpr std::size_t kFrames = 20;
constexpr int kOwnFrames = 3;  // fails_now(), malloc(), and stack_of() itself.

enum class Mode { off, recording, failing };

std::atomic<Mode> g_mode{Mode::off};
std::atomic<std::uint64_t> g_count{0};
std::atomic<std::uint64_t> g_fail_number{0};
std::atomic<std::uint64_t> g_fail_stack{0};
std::array<std::uint64_t, kMostAllocations> g_stacks;

struct Stack {
    std::atomic<std::uint64_t> hash{0};
    std::array<void*, kFrames> frames{};
};
std::array<Stack, kMostStacks> g_known;

thread_local bool t_is_inside = false;

struct Frames {
    std::array<void*, kFrames> frames{};
    std::uint64_t hash = 0;
};

Frames stack_of() {
    std::array<void*, kFrames + kOwnFrames> all{};
    const int depth = ::backtrace(all.data(), static_cast<int>(all.size()));
    Frames out;
    out.hash = 1469598103934665603ULL;
    for (int i = kOwnFrames; i < depth; ++i) {
        out.frames[static_cast<std::size_t>(i - kOwnFrames)] = all[static_cast<std::size_t>(i)];
        out.hash = (out.hash ^ reinterpret_cast<std::uintptr_t>(all[static_cast<std::size_t>(i)])) * 1099511628211ULL;
    }
    return out;
}

void record() {
    const std::uint64_t at = g_count.fetch_add(1);
    if (at >= kMostAllocations) return;
    const Frames stack = stack_of();
    g_stacks[at] = stack.hash;
    for (std::size_t slot = stack.hash % kMostStacks, tries = 0; tries < kMostStacks; ++tries) {
        Stack& known = g_known[(slot + tries) % kMostStacks];
        std::uint64_t nobody = 0;
        if (known.hash.compare_exchange_strong(nobody, stack.hash)) known.frames = stack.frames;
        if (known.hash == stack.hash) return;
    }
}

bool is_chosen() {
    if (const std::uint64_t number = g_fail_number.load()) return g_count.fetch_add(1) + 1 == number;
    return stack_of().hash == g_fail_stack.load();
}

}  // namespace

/// For the functions below, which are no part of the namespace.
bool fails_now() {
    const Mode mode = g_mode.load(std::memory_order_acquire);
    if (mode == Mode::off || t_is_inside) return false;
    t_is_inside = true;
    bool fails = false;
    if (mode == Mode::recording) record();
    if (mode == Mode::failing && is_chosen()) {
        auto still = Mode::failing;
        fails = g_mode.compare_exchange_strong(still, Mode::off);
    }
    t_is_inside = false;
    if (fails) errno = ENOMEM;
    return fails;
}

bool can_fail_memory() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return false;
#else
    return true;
#endif
}

FailingMemory::FailingMemory(const WhichAllocation& which) {
    g_count = 0;
    g_fail_number = which.number;
    g_fail_stack = which.stack;
    g_mode = Mode::failing;
}

FailingMemory::~FailingMemory() {
    stop();
}

void FailingMemory::stop() const {
    g_mode = Mode::off;
}

void begin_recording() {
    std::array<void*, 4> first{};
    static_cast<void>(::backtrace(first.data(), 4));  // Its first call loads a library.
    g_count = 0;
    g_mode = Mode::recording;
}

std::vector<std::uint64_t> allocations_of(const std::function<void()>& work) {
    work();
    g_mode = Mode::off;
    return {g_stacks.begin(), g_stacks.begin() + std::ptrdiff_t(std::min<std::uint64_t>(g_count, kMostAllocations))};
}

std::string describe_stack(std::uint64_t stack) {
    const auto* const known = std::ranges::find_if(g_known, [&](const Stack& one) { return one.hash == stack; });
    if (known == g_known.end()) return "";
    std::string text;
    char** const symbols = ::backtrace_symbols(known->frames.data(), static_cast<int>(kFrames));
    for (std::size_t i = 0; symbols && i < kFrames && known->frames[i]; ++i) text += std::string(symbols[i]) + "\n";
    std::free(symbols);
    return text;
}

}  // namespace lamina::test

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* old, std::size_t size);

void* malloc(std::size_t size) {
    return lamina::test::fails_now() ? nullptr : __libc_malloc(size);
}

void* calloc(std::size_t count, std::size_t size) {
    return lamina::test::fails_now() ? nullptr : __libc_calloc(count, size);
}

void* realloc(void* old, std::size_t size) {
    return lamina::test::fails_now() ? nullptr : __libc_realloc(old, size);
}
}
#endif
