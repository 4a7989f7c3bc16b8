#include "fuse/checkpoint.h"

#include "store/error.h"
#include "store/file.h"

#include <utility>
#include <vector>

namespace lamina::unionfs {

namespace {

constexpr std::size_t kWriteBytes = 1024 * 1024;

class CheckpointWriter {
public:
    CheckpointWriter(store::File& file, std::uint64_t seed) : file_(file), chain_(seed) {}

    void put(const change::Change& change) {
        record_.resize(log_format::kFrameBytes);
        change::encode(change, record_);
        const auto payload = std::span<const std::byte>(record_).subspan(log_format::kFrameBytes);
        if (!change::decode(payload)) {
            throw store::Error(store::Errc::internal, file_.path() + ": a state that could not be read back");
        }
        add();
    }
    void finish() {
        record_.resize(log_format::kFrameBytes);
        codec::Writer out(record_);
        out.byte(log_format::kEndMark);
        out.varint(sequence_);
        add();
        file_.append(buffer_);
    }

private:
    void add() {
        chain_ = log_format::seal(record_, ++sequence_, chain_);
        buffer_.insert(buffer_.end(), record_.begin(), record_.end());
        if (buffer_.size() < kWriteBytes) return;
        file_.append(buffer_);
        buffer_.clear();
    }
    store::File& file_;
    std::uint64_t chain_;
    std::uint64_t sequence_ = 0;
    std::vector<std::byte> record_;
    std::vector<std::byte> buffer_;
};

}  // namespace

std::uint64_t write_checkpoint_file(
    const std::string& path, const CheckpointName& name,
    const std::function<void(const std::function<void(const change::Change&)>&)>& state) {
    store::remove_file(path);
    store::File file = store::File::create(path);
    const auto header = log_format::make_header(log_format::kCheckpointMagic, name.tree, name.generation, name.boot);
    file.append(log_format::bytes_of(header));
    CheckpointWriter writer(file, header.checksum);
    state([&](const change::Change& change) { writer.put(change); });
    writer.finish();
    file.sync();
    return file.size_bytes();
}

std::optional<CheckpointRead> read_checkpoint(const std::string& path, const store::TreeDigest& tree,
                                              const ApplyChange& apply) {
    if (!store::exists(path)) return std::nullopt;
    const store::UniqueFd fd = store::open_read(path);
    const auto corrupt = [&](const std::string& why) { throw store::Error(store::Errc::corrupt, path + ": " + why); };
    const auto header = read_header(fd.get(), path, log_format::kCheckpointMagic, tree);
    if (!header) corrupt("shorter than its header");
    const std::uint64_t size_bytes = store::file_size(path);
    RecordReader reader(fd.get(), path, size_bytes, header->checksum);
    while (const auto record = reader.next()) {
        if (record->kind() == log_format::kEndMark) {
            codec::Reader in(record->payload.subspan(1));
            const bool is_whole = in.varint() == record->sequence - 1 && in.ok() && in.at_end();
            if (!is_whole || reader.end_bytes() != size_bytes) break;
            return CheckpointRead{.generation = header->generation, .size_bytes = size_bytes};
        }
        const auto change = change::decode(record->payload);
        const auto applied = change ? apply(*change) : fail(EINVAL);
        if (applied) continue;
        const auto what = "record " + std::to_string(record->sequence);
        if (applied.error() == Errno{EINVAL}) corrupt(what + " does not fit to those before it");
        store::throw_errno(std::to_underlying(applied.error()), path + ": " + what);
    }
    corrupt("damaged or cut short behind byte " + std::to_string(reader.end_bytes()));
    return std::nullopt;
}

}  // namespace lamina::unionfs
