#include "store/registry_blob.h"

#include "store/error.h"

#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <future>
#include <optional>
#include <utility>

// Each piece is fetched by a thread of its own, which waits most of the time; the reader takes them in order. So memory
// is bounded by the pieces on their way, and a slow reader keeps no connection waiting.
namespace lamina::store {

namespace {

constexpr unsigned kTriesWithoutProgress = 4;
constexpr std::uint64_t kProgressBytes = 1 << 20;
constexpr std::uint64_t kLargeBlobBytes = 8 << 20;
constexpr std::uint64_t kPieceBytes = 2 << 20;
constexpr std::size_t kPiecesAtOnce = 4;

std::string blob_name(const RegistrySession& place, const oci::Descriptor& blob) {
    return "layer blob " + place.describe(blob.digest);
}

/// One stream over several places, one after the other, each from where the one before broke off.
class OneStream : public RegistryRange {
public:
    OneStream(RegistryPlaces places, oci::Descriptor blob, const ByteRange& range, std::stop_token stop)
        : places_(std::move(places)),
          blob_(std::move(blob)),
          offset_bytes_(range.first),
          end_bytes_(range.end),
          stop_(std::move(stop)) {}

    const RegistryReference& place() const override {
        return places_[std::min(place_, places_.size() - 1)]->place().reference;
    }
    std::uint64_t failures() const override { return failures_; }

    std::size_t read(std::span<std::byte> out) override {
        while (true) {
            try {
                return read_on(out);
            } catch (const Error& error) {  // The same place may go on, another one too.
                if (error.code() == Errc::cancelled || !recover(error)) throw;
            }
        }
    }

private:
    void open() { bytes_ = places_[place_]->open_blob(blob_, {offset_bytes_, end_bytes_}, stop_); }

    std::size_t read_on(std::span<std::byte> out) {
        if (!bytes_) open();
        const std::uint64_t left = end_bytes_ - offset_bytes_;
        std::array<std::byte, 1> beyond;
        if (left == 0 && !bytes_->ends_at_range) return 0;
        // At the end one more read sees that nothing follows, and leaves the connection in order.
        const auto wanted = static_cast<std::size_t>(std::min<std::uint64_t>(left, out.size()));
        const std::size_t count = bytes_->source->read(left == 0 ? std::span<std::byte>(beyond) : out.first(wanted));
        if (count > left) {
            throw Error(Errc::corrupt, blob_name(*places_[place_], blob_) + ": more than the promised " +
                                           std::to_string(blob_.size_bytes) + " bytes");
        }
        if (count == 0 && left > 0) {
            throw Error(Errc::unavailable, blob_name(*places_[place_], blob_) + ": broke off after " +
                                               std::to_string(offset_bytes_) + " of " +
                                               std::to_string(blob_.size_bytes) + " bytes");
        }
        offset_bytes_ += count;
        if (offset_bytes_ >= tried_from_ + kProgressBytes) tries_ = 0;
        return count;
    }

    bool recover(const Error& error) {
        bytes_.reset();
        if (tries_ == 0) tried_from_ = offset_bytes_;
        if (is_passing(error) && ++tries_ < kTriesWithoutProgress) {
            ++failures_;
            pause(pause_after(tries_), stop_);
            return true;
        }
        tries_ = 0;
        if (++place_ == places_.size()) return false;
        ++failures_;
        return true;
    }

    const RegistryPlaces places_;
    const oci::Descriptor blob_;
    std::uint64_t offset_bytes_;
    const std::uint64_t end_bytes_;
    const std::stop_token stop_;
    std::optional<RegistrySession::BlobBytes> bytes_;
    std::size_t place_ = 0;
    unsigned tries_ = 0;  ///< That failed since progress was made.
    std::uint64_t failures_ = 0;
    std::uint64_t tried_from_ = 0;
};

/// A large blob, four pieces ahead of its reader.
class ManyPieces : public ByteSource {
public:
    ManyPieces(RegistryPlaces places, oci::Descriptor blob, const std::stop_token& stop)
        : places_(std::move(places)), blob_(std::move(blob)), pass_on_(stop, [this] { stop_.request_stop(); }) {}
    ~ManyPieces() override { stop_.request_stop(); }  // The futures' destructors wait for their threads.

    std::size_t read(std::span<std::byte> out) override {
        if (read_bytes_ == piece_.size() && !next_piece()) return 0;
        const std::size_t count = std::min(out.size(), piece_.size() - read_bytes_);
        std::copy_n(piece_.begin() + static_cast<std::ptrdiff_t>(read_bytes_), count, out.begin());
        read_bytes_ += count;
        return count;
    }

private:
    bool next_piece() {
        while (pieces_.size() < kPiecesAtOnce && asked_bytes_ < blob_.size_bytes) ask_ahead();
        if (pieces_.empty()) return false;
        std::future<std::vector<std::byte>> next = std::move(pieces_.front());
        pieces_.pop_front();
        piece_ = next.get();
        read_bytes_ = 0;
        if (asked_bytes_ < blob_.size_bytes) ask_ahead();
        return true;
    }
    void ask_ahead() {
        const ByteRange range{asked_bytes_, std::min(asked_bytes_ + kPieceBytes, blob_.size_bytes)};
        pieces_.push_back(std::async(std::launch::async, [this, range] {
            return read_registry_range(places_, blob_, range, stop_.get_token());
        }));
        asked_bytes_ = range.end;
    }

    const RegistryPlaces places_;
    const oci::Descriptor blob_;
    std::stop_source stop_;
    const std::stop_callback<std::function<void()>> pass_on_;
    std::uint64_t asked_bytes_ = 0;
    std::deque<std::future<std::vector<std::byte>>> pieces_;
    std::vector<std::byte> piece_;
    std::size_t read_bytes_ = 0;  ///< Of piece_.
};

}  // namespace

std::unique_ptr<ByteSource> open_registry_blob(const RegistryPlaces& places, const oci::Descriptor& blob,
                                               const std::stop_token& stop) {
    const bool is_large = blob.size_bytes >= kLargeBlobBytes && places.front()->knows_ranges(blob, stop);
    if (is_large) return std::make_unique<ManyPieces>(places, blob, stop);
    return std::make_unique<OneStream>(places, blob, ByteRange{0, blob.size_bytes}, stop);
}

std::unique_ptr<RegistryRange> open_registry_range(const RegistryPlaces& places, const oci::Descriptor& blob,
                                                   const ByteRange& range, const std::stop_token& stop) {
    return std::make_unique<OneStream>(places, blob, range, stop);
}

void read_to_end(ByteSource& range) {
    std::array<std::byte, 1> beyond;
    static_cast<void>(range.read(beyond));
}

std::vector<std::byte> read_registry_range(const RegistryPlaces& places, const oci::Descriptor& blob,
                                           const ByteRange& range, const std::stop_token& stop) {
    OneStream stream(places, blob, range, stop);
    std::vector<std::byte> bytes(range.end - range.first);
    std::size_t done = 0;
    while (done < bytes.size()) done += stream.read(std::span(bytes).subspan(done));
    read_to_end(stream);
    return bytes;
}

}  // namespace lamina::store
