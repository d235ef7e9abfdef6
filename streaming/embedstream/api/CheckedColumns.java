import java.util.Map;
import org.apache.spark.sql.AnalysisException;
import org.apache.spark.sql.catalyst.expressions.Expression;
import org.apache.spark.sql.execution.python.UserDefinedPythonFunction;
import org.apache.spark.unsafe.Platform;
import scala.collection.immutable.Map$;
import scala.collection.immutable.Seq;
import scala.jdk.javaapi.CollectionConverters;
import scala.runtime.AbstractFunction1;

/**
 * Checks the columns of a Python function in the analyzer: their number, and that the first one
 * holds what the function embeds.
 */
public final class CheckedColumns extends AbstractFunction1 {
    private static final String SPARK_DOCUMENTATION = "https://spark.apache.org/docs/latest";

    private final UserDefinedPythonFunction function;
    private final int count;
    private final String types;
    private final String described;

    /**
     * @param count how many columns the function takes
     * @param types a pattern of the types that it takes
     * @param described these types in words
     */
    public CheckedColumns(
        UserDefinedPythonFunction function, Integer count, String types, String described
    ) {
        this.function = function;
        this.count = count.intValue();
        this.types = types;
        this.described = described;
    }

    public Object apply(Object given) {
        Seq columns = (Seq) given;
        if (columns.size() != count) {
            refuse("WRONG_NUM_ARGS.WITHOUT_SUGGESTION", Map.of(
                "functionName", function.name(),
                "expectedNum", String.valueOf(count),
                "actualNum", String.valueOf(columns.size()),
                "docroot", SPARK_DOCUMENTATION
            ));
        }
        Expression inputs = (Expression) columns.head();
        String type = inputs.dataType().catalogString();
        if (!type.matches(types)) {
            refuse("UNEXPECTED_INPUT_TYPE", Map.of(
                "functionName", function.name(),
                "paramIndex", "1",
                "requiredType", described,
                "inputSql", inputs.sql(),
                "inputType", type
            ));
        }
        return function.builder(columns);
    }

    private static void refuse(String condition, Map parameters) {
        // The analyzer's own exception is a checked one.
        Platform.throwException(new AnalysisException(
            condition, Map$.MODULE$.from(CollectionConverters.asScala(parameters))
        ));
    }
}
