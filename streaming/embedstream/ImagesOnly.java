import java.util.Map;
import org.apache.spark.sql.AnalysisException;
import org.apache.spark.sql.catalyst.expressions.Expression;
import org.apache.spark.sql.execution.python.UserDefinedPythonFunction;
import org.apache.spark.unsafe.Platform;
import scala.collection.immutable.Map$;
import scala.collection.immutable.Seq;
import scala.jdk.javaapi.CollectionConverters;
import scala.runtime.AbstractFunction1;

/** What the analyzer calls for a Python function: refuses a first column that holds no images. */
public final class ImagesOnly extends AbstractFunction1 {
    private final UserDefinedPythonFunction function;
    private final String types;
    private final String described;

    /**
     * @param types a pattern of the types that hold images
     * @param described these types in words
     */
    public ImagesOnly(UserDefinedPythonFunction function, String types, String described) {
        this.function = function;
        this.types = types;
        this.described = described;
    }

    public Object apply(Object columns) {
        Expression images = (Expression) ((Seq) columns).head();
        String type = images.dataType().catalogString();
        if (!type.matches(types)) {
            Map told = Map.of(
                "functionName", function.name(),
                "paramIndex", "1",
                "requiredType", described,
                "inputSql", images.sql(),
                "inputType", type
            );
            // The analyzer's own exception is a checked one.
            Platform.throwException(new AnalysisException(
                "UNEXPECTED_INPUT_TYPE", Map$.MODULE$.from(CollectionConverters.asScala(told))
            ));
        }
        return function.builder((Seq) columns);
    }
}
