#pragma once

#include "fuse/keeper.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <functional>
#include <map>
#include <mutex>
#include <stdexcept>
#include <vector>

namespace lamina::test {

/// A keeper in memory; thread-safe. It keeps every change as the bytes of the log, so that they can be replayed, and
/// makes space that was released unreadable at once: a use after that shows as wrong bytes.
class FakeKeeper final : public unionfs::Keeper {
public:
    unionfs::Result<void> reserve(std::uint64_t, std::uint64_t data_bytes) override {
        if (reserve_error != 0) return unionfs::fail(reserve_error);
        if (data_.size() + data_bytes > capacity_bytes) return unionfs::fail(ENOSPC);
        return {};
    }
    unionfs::Result<std::uint64_t> place(std::span<const std::byte> data, std::uint64_t previous_end) override {
        const std::lock_guard lock(mutex_);
        if (place_error != 0) return unionfs::fail(place_error);
        if (previous_end != data_.size() || data_.empty()) data_.resize(data_.size() + kGapBytes, kPoison);
        const std::uint64_t at = data_.size();
        data_.insert(data_.end(), data.begin(), data.end());
        used_[at] = data.size();
        return at;
    }
    unionfs::Result<void> overwrite(std::uint64_t offset, std::span<const std::byte> data) override {
        const std::lock_guard lock(mutex_);
        if (denies_overwrites) return unionfs::fail(EAGAIN);
        std::ranges::copy(data, data_.begin() + static_cast<std::ptrdiff_t>(offset));
        ++overwrites;
        return {};
    }
    bool may_overwrite(std::uint64_t offset, std::uint64_t) const override {
        const std::lock_guard lock(mutex_);
        return offset >= synced_end_;
    }
    unionfs::Result<void> load(std::uint64_t offset, std::span<std::byte> out) const override {
        if (before_load) before_load();
        const std::lock_guard lock(mutex_);
        if (offset + out.size() > data_.size()) return unionfs::fail(EIO);
        std::copy_n(data_.begin() + static_cast<std::ptrdiff_t>(offset), out.size(), out.begin());
        return {};
    }
    unsigned begin_reading() noexcept override {
        const std::lock_guard lock(mutex_);
        ++readers_;
        return 1;
    }
    void end_reading(unsigned) noexcept override {
        const std::lock_guard lock(mutex_);
        if (--readers_ > 0) return;
        for (const auto& [offset, size] : unread_) poison(offset, size);
        unread_.clear();
    }
    /// Space is spoilt when nobody reads; releasing before the change that freed it was appended is told apart by
    /// tests.
    void release(std::uint64_t offset, std::uint64_t size) override {
        const std::lock_guard lock(mutex_);
        if (offset + size > data_.size()) throw std::logic_error("released what was never placed");
        is_released_.resize(data_.size(), false);
        for (std::uint64_t at = offset; at < offset + size; ++at) {
            if (is_released_[at]) throw std::logic_error("released twice");
            is_released_[at] = true;
        }
        released_bytes += size;
        log_size_at_release = log.size();
        if (readers_ > 0)
            unread_.emplace_back(offset, size);
        else
            poison(offset, size);
    }
    void append(const unionfs::change::Change& change) noexcept override {
        const std::lock_guard lock(mutex_);
        log.emplace_back();
        unionfs::change::encode(change, log.back());
    }
    unionfs::Result<void> sync() override {
        const std::lock_guard lock(mutex_);
        synced_end_ = data_.size();
        ++syncs;
        return {};
    }
    Usage usage() const override {
        return {.extent_bytes = data_.size(),
                .available_bytes = capacity_bytes - std::min<std::uint64_t>(capacity_bytes, data_.size()),
                .total_bytes = capacity_bytes};
    }
    /// Bytes placed and not released.
    std::uint64_t live_bytes() const {
        std::uint64_t placed = 0;
        for (const auto& [offset, size] : used_) placed += size;
        return placed - released_bytes;
    }

    std::vector<std::vector<std::byte>> log;
    std::uint64_t capacity_bytes = std::uint64_t{1} << 30;
    std::uint64_t released_bytes = 0;
    int reserve_error = 0;
    int place_error = 0;
    int overwrites = 0;
    int syncs = 0;
    bool denies_overwrites = false;
    std::size_t log_size_at_release = 0;
    std::function<void()> before_load;

private:
    void poison(std::uint64_t offset, std::uint64_t size) {
        std::fill_n(data_.begin() + static_cast<std::ptrdiff_t>(offset), size, kPoison);
    }
    static constexpr std::size_t kGapBytes = 16;
    static constexpr std::byte kPoison{0xdd};
    mutable std::mutex mutex_;
    std::vector<std::byte> data_;
    std::map<std::uint64_t, std::uint64_t> used_;
    std::vector<bool> is_released_;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> unread_;
    int readers_ = 0;
    std::uint64_t synced_end_ = 0;
};

}  // namespace lamina::test
