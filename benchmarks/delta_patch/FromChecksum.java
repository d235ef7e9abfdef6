package org.apache.spark.sql.delta;

import java.util.function.Function;
import org.apache.spark.sql.delta.actions.DomainMetadata;
import org.apache.spark.sql.delta.actions.SetTransaction;
import org.apache.spark.sql.delta.stats.FileSizeHistogram;
import scala.Option;
import scala.collection.immutable.Seq;

/**
 * Answers from a snapshot's checksum file what Delta 4.4.0 rebuilds the snapshot's state for, where
 * the file has the answer. The JVM's property `embedstream.benchmark.checksum` switches it on.
 */
public final class FromChecksum {
    private FromChecksum() {
    }

    public static Seq<SetTransaction> setTransactions(SnapshotStateManager state) {
        Option<Seq<SetTransaction>> known =
            find(state, checksum -> checksum.setTransactions());
        return known.isDefined() ? known.get() : state.computedState().setTransactions();
    }

    public static Seq<DomainMetadata> domainMetadata(SnapshotStateManager state) {
        Option<Seq<DomainMetadata>> known = find(state, checksum -> checksum.domainMetadata());
        return known.isDefined() ? known.get() : state.computedState().domainMetadata();
    }

    public static Option<FileSizeHistogram> fileSizeHistogram(SnapshotStateManager state) {
        Option<FileSizeHistogram> known = find(state, checksum -> checksum.fileSizeHistogram());
        return known.isDefined() ? known : state.computedState().fileSizeHistogram();
    }

    public static long sizeInBytes(SnapshotStateManager state) {
        Option<Long> known = find(state, checksum -> Option.apply(checksum.tableSizeBytes()));
        return known.isDefined() ? known.get() : state.computedState().sizeInBytes();
    }

    public static long numOfFiles(SnapshotStateManager state) {
        Option<Long> known = find(state, checksum -> Option.apply(checksum.numFiles()));
        return known.isDefined() ? known.get() : state.computedState().numOfFiles();
    }

    private static <T> Option<T> find(
        SnapshotStateManager state, Function<VersionChecksum, Option<T>> field
    ) {
        Option<VersionChecksum> checksum = ((Snapshot) state).checksumOpt();
        boolean isUsed = checksum.isDefined() && Boolean.getBoolean("embedstream.benchmark.checksum");
        return isUsed ? field.apply(checksum.get()) : Option.empty();
    }
}
