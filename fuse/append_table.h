#pragma once

#include "store/error.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <type_traits>
#include <vector>

namespace lamina::unionfs {

/// Plain records that are only ever added; their index is what others keep of them. References stay valid. Index 0 is
/// there from the start, all zeros, and means none.
template <class Record>
class AppendTable {
    static_assert(std::is_trivially_copyable_v<Record>);
    static constexpr std::uint32_t kPerSegment = 1024;

public:
    AppendTable() { add({}); }

    std::uint32_t size() const noexcept { return size_; }  ///< With the one of index 0.
    Record& operator[](std::uint32_t index) noexcept { return segments_[index / kPerSegment][index % kPerSegment]; }
    const Record& operator[](std::uint32_t index) const noexcept {
        return segments_[index / kPerSegment][index % kPerSegment];
    }
    std::uint32_t add(const Record& record) {
        if (size_ == UINT32_MAX) throw store::Error(store::Errc::no_space, "a stack of too many files");
        if (size_ % kPerSegment == 0) segments_.push_back(std::make_unique<Record[]>(kPerSegment));
        (*this)[size_] = record;
        return size_++;
    }

private:
    std::vector<std::unique_ptr<Record[]>> segments_;
    std::uint32_t size_ = 0;
};

/// Where a text lies in a TextHeap.
struct TextRef {
    std::uint32_t chunk = 0;
    std::uint16_t offset = 0;
    std::uint16_t size_bytes = 0;
};

/// Texts of up to 64 KiB - 1 that are only ever added; views of them stay valid.
class TextHeap {
    static constexpr std::size_t kChunkBytes = 64 << 10;

public:
    TextRef add(std::string_view text) {
        if (text.size() >= kChunkBytes) throw store::Error(store::Errc::malformed, "a name of more than 64 KiB");
        if (text.empty()) return {};
        if (chunks_.empty() || used_ + text.size() > kChunkBytes) {
            chunks_.push_back(std::make_unique<char[]>(kChunkBytes));
            used_ = 0;
        }
        std::memcpy(chunks_.back().get() + used_, text.data(), text.size());
        const TextRef ref{.chunk = static_cast<std::uint32_t>(chunks_.size() - 1),
                          .offset = static_cast<std::uint16_t>(used_),
                          .size_bytes = static_cast<std::uint16_t>(text.size())};
        used_ += text.size();
        return ref;
    }
    std::string_view get(TextRef ref) const noexcept {
        return ref.size_bytes == 0 ? std::string_view()
                                   : std::string_view(chunks_[ref.chunk].get() + ref.offset, ref.size_bytes);
    }

private:
    std::vector<std::unique_ptr<char[]>> chunks_;
    std::size_t used_ = 0;
};

}  // namespace lamina::unionfs
