#pragma once

#include "store/file.h"

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <unordered_map>
#include <utility>

namespace lamina::unionfs {

using SharedFd = std::shared_ptr<const store::UniqueFd>;

/// The descriptors that were used last, up to a limit. One that is in use elsewhere lives on there. Not thread-safe.
class DescriptorCache {
public:
    explicit DescriptorCache(std::size_t limit) : limit_(limit < 2 ? 2 : limit) {}

    SharedFd find(std::uint64_t key) {  ///< Null: not here.
        const auto found = places_.find(key);
        if (found == places_.end()) return nullptr;
        order_.splice(order_.begin(), order_, found->second);
        return order_.front().second;
    }
    SharedFd add(std::uint64_t key, store::UniqueFd fd) {
        drop(key);
        while (order_.size() >= limit_) {
            places_.erase(order_.back().first);
            order_.pop_back();
        }
        order_.emplace_front(key, std::make_shared<const store::UniqueFd>(std::move(fd)));
        places_[key] = order_.begin();
        return order_.front().second;
    }
    void drop(std::uint64_t key) {
        const auto found = places_.find(key);
        if (found == places_.end()) return;
        order_.erase(found->second);
        places_.erase(found);
    }
    std::size_t size() const noexcept { return order_.size(); }

private:
    using Order = std::list<std::pair<std::uint64_t, SharedFd>>;
    std::size_t limit_;
    Order order_;  // Used last first.
    std::unordered_map<std::uint64_t, Order::iterator> places_;
};

}  // namespace lamina::unionfs
