import org.apache.spark.sql.SparkSession;
import org.apache.spark.sql.delta.DeltaLog;
import org.apache.spark.sql.delta.Snapshot;
import org.apache.spark.sql.streaming.StreamingQuery;
import org.apache.spark.sql.streaming.StreamingQueryProgress;

/**
 * Computes the state of a table's log at the end of each micro-batch.
 *
 * Delta's sink needs it at the start of the next micro-batch, and takes the value that it finds
 * in the snapshot: what is computed here, once, is what it would have computed.
 *
 * Not earlier: the commit ends with values of the new snapshot, which have one lock with its state.
 */
public final class LogState implements Runnable {
    // The next micro-batch needs a tenth of a second to come to its state.
    private static final long PAUSE_MS = 10;

    private final SparkSession session;
    private final DeltaLog log;
    private final StreamingQuery query;

    public LogState(SparkSession session, DeltaLog log, StreamingQuery query) {
        this.session = session;
        this.log = log;
        this.query = query;
    }

    /** Runs until the query ends. */
    public void run() {
        org.apache.spark.sql.classic.SparkSession.setActiveSession(
            (org.apache.spark.sql.classic.SparkSession) session
        );
        // Stopping the query cancels its job group: a micro-batch may be waiting for this very state.
        session.sparkContext().setJobGroup(
            query.runId().toString(), "embedstream: state of the table's log", true
        );
        Snapshot computed = null;
        StreamingQueryProgress seen = null;
        while (query.isActive()) {
            StreamingQueryProgress last = query.lastProgress();
            boolean isBetween = last != seen || !query.status().isTriggerActive();
            seen = last;
            Snapshot newest = log.unsafeVolatileSnapshot();
            if (newest != computed && isBetween) {
                computed = newest;
                try {
                    newest.transactions();
                } catch (Exception error) {
                    // The micro-batch computes it again, and fails with the same reason.
                }
            }
            try {
                Thread.sleep(PAUSE_MS);
            } catch (InterruptedException error) {
                return;
            }
        }
    }
}
