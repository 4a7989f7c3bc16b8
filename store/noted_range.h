#pragma once

#include "store/fetch_log.h"
#include "store/registry_blob.h"

#include <memory>

namespace lamina::store {

/// A part of a blob on its way, noted in the log: by end(), or when it is given up. One thread at a time.
class NotedRange : public ByteSource {
public:
    /// `request` says what is asked for, and why; the rest of it is seen here, but for brings(). Borrows the log.
    NotedRange(FetchLog& log, RangeRequest request, std::unique_ptr<RegistryRange> range);
    ~NotedRange() override;
    NotedRange(const NotedRange&) = delete;
    NotedRange& operator=(const NotedRange&) = delete;

    std::int64_t request_us() const { return request_.sent_us; }  ///< Its name in the log.
    std::size_t read(std::span<std::byte> out) override;
    void brings(std::uint64_t tar_end) { request_.tar_end = tar_end; }  ///< The chunks that begin before it have come.
    void end();                                                         ///< After the last byte: as read_to_end().

private:
    /// What `work` throws is noted, too.
    template <class Work>
    auto noting_errors(Work&& work);
    void note();

    FetchLog& log_;
    RangeRequest request_;
    const std::unique_ptr<RegistryRange> range_;
    bool is_noted_ = false;
};

}  // namespace lamina::store
