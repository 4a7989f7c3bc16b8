#pragma once

#include "store/file_ops.h"

#include <atomic>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace lamina::test {

/// While it lives, runs `action` once, before the first step on a path that contains `part`, in the thread that does
/// it.
class RunBefore : public store::FaultHook {
public:
    struct When {
        std::string step;
        std::string part;
    };
    RunBefore(When when, std::function<void()> action) : when_(std::move(when)), action_(std::move(action)) {
        store::g_fault_hook = this;
    }
    ~RunBefore() override { store::g_fault_hook = nullptr; }
    void before(std::string_view step, std::string_view path) override {
        if (step != when_.step || path.find(when_.part) == std::string_view::npos) return;
        if (!has_run_.exchange(true)) action_();
    }
    bool has_run() const { return has_run_; }

private:
    const When when_;
    const std::function<void()> action_;
    std::atomic<bool> has_run_{false};
};

}  // namespace lamina::test
