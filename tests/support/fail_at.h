#pragma once

#include "store/error.h"
#include "store/file_ops.h"

#include <string>
#include <string_view>

namespace lamina::test {

/// While it lives, the nth step that changes the disk fails with no_space; those before and behind it do not.
class FailAt final : public store::FaultHook {
public:
    explicit FailAt(int step) : left_(step) { store::g_fault_hook = this; }
    ~FailAt() override { store::g_fault_hook = nullptr; }
    FailAt(const FailAt&) = delete;
    FailAt& operator=(const FailAt&) = delete;
    void before(std::string_view step, std::string_view path) override {
        if (--left_ == 0) throw store::Error(store::Errc::no_space, std::string(step) + " " + std::string(path));
    }
    bool has_failed() const { return left_ <= 0; }

private:
    int left_;
};

}  // namespace lamina::test
